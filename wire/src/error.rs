/// What went wrong while reading or writing one of the wire formats.
///
/// No variant carries key material or packet contents.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("the text is not a {kind}: it has to be `{prefix}` and 64 hex digits")]
    Key {
        kind: &'static str,
        prefix: &'static str,
    },
    #[error("cannot read the {what}: {source}")]
    Json {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("{what} is too short: {got} bytes of at least {need}")]
    Short {
        what: &'static str,
        need: usize,
        got: usize,
    },
    #[error("{what} is too long: {got} bytes of at most {limit}")]
    Long {
        what: &'static str,
        limit: usize,
        got: usize,
    },
    #[error("{what} has too many entries: {got} of at most {limit}")]
    Many {
        what: &'static str,
        limit: usize,
        got: usize,
    },
    #[error("{what} is malformed: {why}")]
    Malformed {
        what: &'static str,
        why: &'static str,
    },
    #[error("{what} does not open: it was not made for this key, or was changed on the way")]
    Seal { what: &'static str },
    #[error("the control server refused the handshake: {0}")]
    Refused(String),
    #[error("cannot decompress the map message: {0}")]
    Zstd(#[source] std::io::Error),
    #[error("the stream broke: {0}")]
    Io(#[from] std::io::Error),
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(error) => error,
            other => std::io::Error::new(std::io::ErrorKind::InvalidData, other),
        }
    }
}
