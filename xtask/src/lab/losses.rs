//! Whether what was lost is lowroad's fault: a case is judged by what its own traffic met, and by nobody else's.

use std::time::Instant;

use crate::traffic::{Carried, Report, Standstills};

/// The traffic of one case.
#[derive(Debug)]
pub struct Traffic<'a> {
    pub what: &'a str,
    /// From its first packet until all of it was counted.
    pub ran: (Instant, Instant),
    pub ping: &'a Report,
    /// Pings that came, and that the kernel had no room to answer.
    pub unmade: usize,
    pub stream: Option<Carried>,
    pub refused: Option<Refused>,
}

/// Packets that a filter refuses, on the pings' way to it.
#[derive(Debug, Clone, Copy)]
pub struct Refused {
    pub sent: u64,
    /// By the filter.
    pub counted: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was lost.
    Kept,
    /// An emulated CPU lost it: why that is believed, and what was lost.
    Excused(String),
    Lost(String),
}

/// Judges each case by itself; one that lost something without an excuse decides.
///
/// A ping that no answer came to is excused if it was sent while the machine stood still, or waited in a queue ([`Report::lost_by_us`]), or if an answer could not be made: each of those
/// answers explains one ping, first of those that nothing else explains. TCP segments and refused packets tell no time, so they are excused by their own case only: the machine stood still
/// while it ran, or it lost pings in queues, those left out that had come; and no more of them than that explains. Only an emulated CPU excuses anything but an answer that could not be made.
pub fn judge(cases: &[Traffic], standstills: &Standstills, emulated: bool) -> Verdict {
    let mut excused = Vec::new();
    for case in cases {
        match case.judge(standstills, emulated) {
            Verdict::Kept => {}
            Verdict::Excused(why) => excused.push(format!("{}: {why}", case.what)),
            Verdict::Lost(what) => return Verdict::Lost(format!("{}: {what}", case.what)),
        }
    }
    if excused.is_empty() {
        return Verdict::Kept;
    }
    Verdict::Excused(excused.join("; "))
}

impl Traffic<'_> {
    fn judge(&self, standstills: &Standstills, emulated: bool) -> Verdict {
        let Self { ping, unmade, .. } = self;
        let ours = ping.lost_by_us(standstills);
        if ours > *unmade {
            return Verdict::Lost(format!(
                "{ping}; {unmade} of them had come, {ours} were lost while the machine ran"
            ));
        }
        // More than `unmade`, which explains all of ours: these are excused by nothing but the machine.
        let in_queues = ping.lost().saturating_sub(*unmade);
        let stood = standstills.during(self.ran);
        let missing = self.missing();
        if in_queues == 0 && missing.is_empty() {
            return Verdict::Kept;
        }
        let what = [vec![ping.to_string()], missing].concat().join("; ");
        if !emulated || (in_queues == 0 && stood.is_none()) {
            return Verdict::Lost(what);
        }
        if let Some(refused) = self.refused {
            let uncounted = refused.sent.saturating_sub(refused.counted);
            let most = refused.share(in_queues, ping.sent);
            if uncounted > most {
                return Verdict::Lost(format!(
                    "{what}; of as many as pings were lost in queues, {most} would be missing"
                ));
            }
        }
        if let Some(stream) = self.stream {
            // Those lost while it stood still explain no more than that does.
            let elsewhere = ping.unanswered.iter();
            let elsewhere = elsewhere.filter(|one| !standstills.excuse(one.sent));
            let elsewhere = elsewhere.count().saturating_sub(*unmade);
            let most = most_segments(stream, elsewhere, ping.sent, standstills.part(self.ran));
            if stream.lost > most {
                return Verdict::Lost(format!(
                    "{what}; where pings were lost in queues, and while the machine stood still, {most} segments would be"
                ));
            }
        }
        let unanswered = ping.unanswered.iter().filter(|one| one.queued());
        let waited = unanswered.map(|one| one.beside).max();
        Verdict::Excused(format!(
            "the emulated CPU stood still for {:.1} s and left answers waiting for {:.1} s, this host's being wanted elsewhere: {what}",
            stood.unwrap_or_default().as_secs_f32(),
            waited.unwrap_or_default().as_secs_f32(),
        ))
    }

    /// What is missing beside pings.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if let Some(stream) = self.stream.filter(|stream| stream.lost > 0) {
            missing.push(format!(
                "{} of {} TCP segments lost",
                stream.lost, stream.segments
            ));
        }
        if let Some(refused) = self
            .refused
            .filter(|refused| refused.counted < refused.sent)
        {
            missing.push(format!(
                "{} of {} refused packets were counted",
                refused.counted, refused.sent
            ));
        }
        missing
    }
}

impl Refused {
    /// How many of them may have been lost in the queues that lost so many pings. Both are sent at a steady pace over the same way, and a ping can be lost on its way back, too: no larger part of
    /// these than of the pings, up to a whole packet. Without a lost ping nothing shows that a queue before the filter ran over.
    fn share(self, pings_lost: usize, pings: usize) -> u64 {
        let part = self.sent * pings_lost as u64;
        part.div_ceil(pings.max(1) as u64)
    }
}

/// How many segments of a stream may have been lost in the queues that lost so many pings, and while the machine stood still for a part of the time. The stream is written at a steady pace,
/// too, but is sent in bursts, and answers a loss with one: so it may lose a window of ten segments (RFC 6928), and four times the pings' part.
fn most_segments(stream: Carried, pings_lost: usize, pings: usize, stood: f64) -> u32 {
    const WINDOW: f64 = 10.0;
    const BURSTS: f64 = 4.0;
    let lost = pings_lost as f64 / pings.max(1) as f64;
    let part = (lost * BURSTS + stood).min(1.0);
    (f64::from(stream.segments) * part + WINDOW).ceil() as u32
}

#[cfg(test)]
mod tests;
