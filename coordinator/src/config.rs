//! What `serve` runs with: flags over a file over defaults, checked.

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use lowroad_wire::control::{DerpMap, DnsConfig, DnsRecord, Resolver};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    Error,
    args::{Serve, StunAddr},
    policy,
    refused::RefusedPolicy,
    relay_map,
    state::{Settings, Timing},
    text,
};

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080);
const BASE_DOMAIN: &str = "tail.internal";
const STUN_PORT: u16 = 3478;

/// The file of `--config`: JSON with comments. Every setting is optional; flags win.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    listen: Option<SocketAddr>,
    url: Option<String>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    policy: Option<PathBuf>,
    /// `ADDRESS:PORT` or `off`.
    stun: Option<String>,
    base_domain: Option<String>,
    derp_map: Option<PathBuf>,
    /// Addresses of the relay, if clients cannot find them by its name.
    relay_ipv4: Option<String>,
    relay_ipv6: Option<String>,
    /// Resolvers for names outside the tailnet.
    nameservers: Vec<String>,
    /// Clients use `nameservers` instead of their own resolvers, not beside them.
    override_local_dns: bool,
    extra_records: Vec<DnsRecord>,
    /// How long an ephemeral node may be gone, such as `30m`.
    ephemeral_timeout: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub state_dir: PathBuf,
    pub listen: SocketAddr,
    pub url: Url,
    pub tls: Option<TlsFiles>,
    /// Text of the `--policy` file, and its path for messages.
    pub policy: Option<(PathBuf, String)>,
    pub stun: Stun,
    pub relay_ipv4: Option<String>,
    pub relay_ipv6: Option<String>,
    /// Further relay regions.
    pub derp_map: DerpMap,
    pub dns: DnsConfig,
    pub settings: Settings,
}

#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stun {
    Off,
    /// Asked for: it is an error if the port is taken.
    At(SocketAddr),
    /// Not asked for: without it if the port is taken.
    Try(SocketAddr),
}

impl Config {
    pub fn load(state_dir: &Path, flags: &Serve) -> Result<Self, Error> {
        let file = flags
            .config
            .as_deref()
            .map(read_json::<File>)
            .transpose()?
            .unwrap_or_default();
        let listen = flags.listen.or(file.listen).unwrap_or(LISTEN);
        let url = flags.url.clone().or(file.url);
        let url = url.ok_or_else(|| Error::Setting("--url is missing: under which URL will clients reach this server? For example --url http://192.0.2.1:8080".to_owned()))?;
        let url = Url::parse(&url)?;
        let base_domain = flags
            .base_domain
            .clone()
            .or(file.base_domain)
            .unwrap_or_else(|| BASE_DOMAIN.to_owned());
        let base_domain = check_base_domain(&base_domain, &url)?;
        let stun = match flags.stun {
            Some(stun) => Some(stun),
            None => file
                .stun
                .map(|text| {
                    text.parse()
                        .map_err(|why| Error::Setting(format!("stun: {why}")))
                })
                .transpose()?,
        };
        let ephemeral = file
            .ephemeral_timeout
            .map(|text| text::parse_duration(&text))
            .transpose();
        let ephemeral_timeout = ephemeral
            .map_err(Error::Setting)?
            .unwrap_or(Timing::default().ephemeral_timeout);
        let tls_cert = flags.tls_cert.clone().or(file.tls_cert);
        let tls_key = flags.tls_key.clone().or(file.tls_key);
        let policy = flags.policy.clone().or(file.policy);
        let derp_map = flags.derp_map.clone().or(file.derp_map);
        Ok(Self {
            state_dir: state_dir.to_owned(),
            listen,
            tls: match (tls_cert, tls_key) {
                (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
                (None, None) => None,
                _ => {
                    return Err(Error::Setting(
                        "tls_cert and tls_key go together; give both or none".to_owned(),
                    ));
                }
            },
            policy: policy
                .map(|path| read_policy(&path).map(|text| (path, text)))
                .transpose()?,
            stun: match stun {
                Some(StunAddr::Off) => Stun::Off,
                Some(StunAddr::At(address)) => Stun::At(address),
                None => Stun::Try(SocketAddr::new(listen.ip(), STUN_PORT)),
            },
            relay_ipv4: relay_address::<Ipv4Addr>("relay_ipv4", file.relay_ipv4)?,
            relay_ipv6: relay_address::<Ipv6Addr>("relay_ipv6", file.relay_ipv6)?,
            derp_map: derp_map
                .as_deref()
                .map(read_derp_map)
                .transpose()?
                .unwrap_or_default(),
            dns: dns(
                &base_domain,
                file.nameservers,
                file.override_local_dns,
                file.extra_records,
            ),
            settings: Settings {
                base_domain,
                timing: Timing {
                    ephemeral_timeout,
                    ..Timing::default()
                },
            },
            url,
        })
    }
}

/// Where clients reach the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Without a slash at its end.
    pub text: String,
    pub host: Host,
    pub port: u16,
    pub is_https: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Name(String),
    Address(IpAddr),
}

impl Url {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::Setting(format!(
                "`{text}` is no URL of a server; write http://HOST:PORT or https://HOST"
            ))
        };
        let text = text.trim().trim_end_matches('/');
        let uri: hyper::Uri = text.parse().map_err(|_| wrong())?;
        let scheme_port = match uri.scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => return Err(wrong()),
        };
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(wrong)?;
        if uri.path() != "/" || uri.query().is_some() {
            return Err(Error::Setting(format!(
                "`{text}` has a path; clients expect the server at the root of its host"
            )));
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let host = bare
            .parse()
            .map_or_else(|_| Host::Name(host.to_ascii_lowercase()), Host::Address);
        Ok(Self {
            text: text.to_owned(),
            host,
            port: uri.port_u16().unwrap_or(scheme_port),
            is_https: scheme_port == 443,
        })
    }
}

impl Host {
    /// As a certificate names it.
    pub fn text(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Address(address) => address.to_string(),
        }
    }
}

/// Clients skip an address that they cannot read, and with it the relay; who wrote it has to hear of it.
fn relay_address<A: FromStr + ToString>(
    setting: &str,
    text: Option<String>,
) -> Result<Option<String>, Error> {
    let Some(text) = text else { return Ok(None) };
    if text == relay_map::NO_ADDRESS {
        return Ok(Some(text));
    }
    text.parse::<A>()
        .map(|address| Some(address.to_string()))
        .map_err(|_| {
            Error::Setting(format!(
                "{setting}: `{text}` is no address of this family; write one, or `none`"
            ))
        })
}

/// Clients would look the server up inside the tailnet that they cannot reach without it.
fn check_base_domain(name: &str, url: &Url) -> Result<String, Error> {
    let name = name.trim_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
    };
    if name.len() > 180 || !name.split('.').all(is_label) {
        return Err(Error::Setting(format!(
            "--base-domain {name}: no domain name; write for example tail.example.com"
        )));
    }
    if let Host::Name(host) = &url.host
        && (*host == name || host.ends_with(&format!(".{name}")))
    {
        return Err(Error::Setting(format!(
            "--base-domain {name} contains the server's own name {host}, which clients would then look for inside the tailnet; choose another domain"
        )));
    }
    Ok(name)
}

fn dns(
    base_domain: &str,
    nameservers: Vec<String>,
    override_local: bool,
    extra_records: Vec<DnsRecord>,
) -> DnsConfig {
    let resolvers: Vec<_> = nameservers
        .into_iter()
        .map(|addr| Resolver {
            addr,
            ..Resolver::default()
        })
        .collect();
    let (resolvers, fallback_resolvers) = if override_local {
        (resolvers, Vec::new())
    } else {
        (Vec::new(), resolvers)
    };
    // Reverse names of fd7a:115c:a1e0::/48 and of 100.64.0.0/10.
    let v4 = (64..128).map(|second| format!("{second}.100.in-addr.arpa"));
    let reverse = v4.chain(["0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa".to_owned()]);
    DnsConfig {
        resolvers,
        fallback_resolvers,
        routes: reverse.map(|zone| (zone, Vec::new())).collect(),
        domains: vec![base_domain.to_owned()],
        proxied: true,
        extra_records,
        ..DnsConfig::default()
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::io(format!("read {}", path.display())))
}

/// No longer than `policy set` takes it, too.
fn read_policy(path: &Path) -> Result<String, Error> {
    let read = || {
        let mut bytes = Vec::new();
        let limit = policy::MAX_POLICY as u64 + 1;
        fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes: Vec<u8> = read().map_err(Error::io(format!("read {}", path.display())))?;
    policy::check_length(&bytes)
        .map_err(|why| Error::Setting(format!("{}: {why}", path.display())))?;
    RefusedPolicy::decode(bytes, path)
}

/// JSON with comments and trailing commas.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let config = |what: String| Error::Config {
        path: path.to_owned(),
        what,
    };
    let value =
        jsonc_parser::parse_to_serde_value::<serde_json::Value>(&read(path)?, &Default::default());
    let value = value.map_err(|error| config(error.to_string()))?;
    serde_json::from_value(value).map_err(|error| config(error.to_string()))
}

/// Clients skip what they cannot read of a relay map; who wrote it has to hear of it.
fn read_derp_map(path: &Path) -> Result<DerpMap, Error> {
    let config = |what: String| Error::Config {
        path: path.to_owned(),
        what,
    };
    let written: serde_json::Value = read_json(path)?;
    let map: DerpMap =
        serde_json::from_value(written.clone()).map_err(|error| config(error.to_string()))?;
    let none = serde_json::Map::new();
    let regions = match &written["Regions"] {
        serde_json::Value::Object(regions) => regions,
        serde_json::Value::Null => &none,
        _ => return Err(config("Regions is no object".to_owned())),
    };
    for (id, region) in regions {
        let read = id.parse().ok().and_then(|id| map.regions.get(&id));
        let nodes = region["Nodes"].as_array().map_or(0, Vec::len);
        if read.is_none_or(|read| read.nodes.len() != nodes) {
            return Err(config(format!(
                "region {id} or one of its Nodes is malformed: IDs are numbers from 1 to 65535, and each field has its type"
            )));
        }
    }
    Ok(map)
}

/// How long a shutdown waits for connections to end.
pub const DRAIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = Url::parse("https://hs.lab/").unwrap();
        assert_eq!((url.text.as_str(), url.port), ("https://hs.lab", 443));
        assert_eq!(url.host, Host::Name("hs.lab".to_owned()));
        let url = Url::parse("http://[2001:db8::1]:8080").unwrap();
        assert_eq!(
            (url.host, url.port),
            (Host::Address("2001:db8::1".parse().unwrap()), 8080)
        );
        for wrong in [
            "hs.lab",
            "ftp://hs.lab",
            "https://hs.lab/path",
            "https://",
            "http://hs.lab?x=1",
            "",
        ] {
            assert!(Url::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_base_domain_that_holds_the_server_is_refused() {
        let url = Url::parse("https://hs.example.com").unwrap();
        assert!(check_base_domain("example.com", &url).is_err());
        assert!(check_base_domain("hs.example.com", &url).is_err());
        assert_eq!(
            check_base_domain("tail.example.com.", &url).unwrap(),
            "tail.example.com"
        );
        assert!(check_base_domain("a..b", &url).is_err());
    }

    #[test]
    fn a_region_that_clients_would_skip_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            read_derp_map(&path)
        };
        let good = r#"{"Regions": {"900": {"RegionID": 900, "Nodes": [{"HostName": "r"}]}}}"#;
        assert_eq!(read(good).unwrap().regions.len(), 1);
        for (from, to) in [
            ("\"900\":", "\"70000\":"),
            ("900,", "\"900\","),
            ("\"r\"", "1"),
        ] {
            let error = read(&good.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains("malformed"), "{error}");
        }
        assert!(read(r#"{"Regions": []}"#).is_err());
    }

    #[test]
    fn addresses_of_the_relay_are_checked() {
        let v4 = |text: &str| relay_address::<Ipv4Addr>("relay_ipv4", Some(text.to_owned()));
        assert_eq!(v4("192.0.2.1").unwrap().unwrap(), "192.0.2.1");
        assert_eq!(v4("none").unwrap().unwrap(), "none");
        for wrong in [
            "",
            "2001:db8::1",
            "relay.example.com",
            "192.0.2.1:443",
            "NONE",
        ] {
            let error = v4(wrong).unwrap_err().to_string();
            assert!(error.contains("relay_ipv4"), "{error}");
        }
        assert!(relay_address::<Ipv6Addr>("relay_ipv6", Some("192.0.2.1".to_owned())).is_err());
    }

    #[test]
    fn a_policy_file_is_no_longer_than_one_that_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        fs::write(&path, vec![b' '; policy::MAX_POLICY]).unwrap();
        assert_eq!(read_policy(&path).unwrap().len(), policy::MAX_POLICY);
        fs::write(&path, vec![b' '; policy::MAX_POLICY + 1]).unwrap();
        let error = read_policy(&path).unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
    }

    #[test]
    fn an_unknown_setting_in_the_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        fs::write(
            &path,
            "{\n  // a comment\n  \"url\": \"http://127.0.0.1:1\", \"lisen\": 1,\n}",
        )
        .unwrap();
        let error = Config::load(
            dir.path(),
            &Serve {
                config: Some(path),
                ..Serve::default()
            },
        )
        .unwrap_err();
        assert!(error.to_string().contains("lisen"), "{error}");
    }
}
