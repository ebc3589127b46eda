//! The policy file's text: laid out, and edited.

use lowroad_coordinator::policy::{
    Policy, PolicyErrorKind,
    edit::{self, AclRule, Edited, NewRule, NotEdited},
};

const TAG: &str = "tag:server";

/// A layout is its own and means the same, and an edit gives a policy in which there is nothing left to edit.
pub fn policy_edit(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match edit::format(text) {
        Ok(formatted) => {
            assert_eq!(edit::format(&formatted).as_ref(), Ok(&formatted));
            assert_eq!(verdict(&formatted), verdict(text), "{formatted}");
        }
        Err(error) => {
            let lines = text.split('\n').count();
            assert!((1..=lines).contains(&(error.line as usize)), "{error}");
        }
    }
    let rule = NewRule::Acl(AclRule {
        protocol: None,
        sources: vec!["ann@example.com".to_owned()],
        destinations: vec!["*:22".to_owned()],
    });
    let owners = ["ann@example.com".to_owned(), "bob@".to_owned()];
    type Edit<'a> = &'a dyn Fn(&str) -> Result<Edited, NotEdited>;
    let edits: [Edit; 4] = [
        &|text| edit::add_rule(text, &rule),
        &|text| edit::add_tag_owners(text, TAG, &owners),
        &|text| edit::remove_tag_owners(text, TAG, &owners),
        &|text| edit::remove_tag(text, TAG),
    ];
    for make in edits {
        let edited = match make(text) {
            Ok(edited) => edited,
            Err(why) => {
                // The places of the errors are in the text that they come with.
                let lines = why.changed.as_deref().unwrap_or(text).split('\n').count();
                for error in &why.errors {
                    assert!((1..=lines).contains(&(error.line as usize)), "{error}");
                }
                continue;
            }
        };
        assert_eq!(edited.changed, edited.text != text);
        assert!(Policy::parse(&edited.text).is_ok(), "{}", edited.text);
        let again = make(&edited.text).expect("it is a good policy");
        assert!(!again.changed, "{}", again.text);
    }
}

/// What is wrong, whatever the layout.
fn verdict(text: &str) -> Vec<PolicyErrorKind> {
    match Policy::parse(text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(|error| error.kind).collect(),
    }
}

pub fn policy_edit_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "// nothing\n{ /* at all */ }\n// more",
        "{\r\n  // rules\r\n  \"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"]}], /* x */\r\n}",
        "{\"acls\": [\n\t{\n\t\t\"action\": \"accept\", // yes\n\t\t\"src\": [\"*\"],\n\t\t\"dst\": [\"*:1\"]\n\t} /* a */ // b\n]}",
        "{\"tagOwners\": {\n\"tag:server\": [\"ann@example.com\", \"bob@\"], // x\n\"tag:b\": [\n\"bob@\" /*\n*/ ,]\n}}",
        "{\"tagOwners\": {\"tag:server\": [\n\"bob@\"\n, \"ann@example.com\" // Ann\r]}, \"acls\": null}",
        "{\"a\" // b\n: /*\n\t * c\n */ {\"d\": [ ], \"long\": 1}}",
    ];
    let mut seeds: Vec<Vec<u8>> = texts.map(|text| text.as_bytes().to_vec()).to_vec();
    let depth = 500;
    seeds.push(format!("{}1{}", "[\n".repeat(depth), "]".repeat(depth)).into_bytes());
    seeds.push(format!("{}1{}", "{\"a\": //\n".repeat(depth), "}".repeat(depth)).into_bytes());
    seeds
}
