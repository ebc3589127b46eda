//! What `policy fmt` may take: deep lists with comments that would be hundreds of times as long.

use lowroad_coordinator::policy::edit;
use lowroad_fuzz::Target;

use super::{MAX_POLICY, TAKEN};

pub(super) const LAID_OUT: Target = Target {
    run: laid_out,
    ..TAKEN
};

fn laid_out(input: &[u8]) {
    let text = std::str::from_utf8(input).expect("it is text");
    let error = edit::format(text).expect_err("it is too long");
    assert!(error.message.contains("longer than"), "{error}");
}

pub(super) fn shapes() -> Vec<(&'static str, String)> {
    let nested = |comments: String| format!("{}{comments}1{}", "[\n".repeat(400), "]".repeat(400));
    vec![
        (
            "a long comment",
            nested(format!("/*{}*/", "x\n".repeat(MAX_POLICY / 4))),
        ),
        (
            "long comments",
            nested(format!("/*{}*/", "x\n".repeat(1300)).repeat(198)),
        ),
        ("short comments", nested("//\n".repeat(170_000))),
    ]
}
