//! Permission for aya to copy these types to and from maps.

use crate::{Address, Class, Count, Numbered, RateWindow, Settings};

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)` or transparent, Copy, no padding but explicit fields (asserted beside the type), and any bytes are a valid value.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

pod!(Address, Class, Count, Numbered, RateWindow, Settings);
