use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{RegionId, go};

/// The relays, as they are once every update has been taken in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DerpMap {
    #[serde(
        rename = "HomeParams",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub home_params: HomeParams,
    #[serde(rename = "Regions", deserialize_with = "go::lenient_map")]
    pub regions: BTreeMap<RegionId, DerpRegion>,
    #[serde(
        rename = "omitDefaultRegions",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub omit_default_regions: bool,
}

/// The relays as a MapResponse tells them: what is absent stays as it was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DerpMapUpdate {
    #[serde(rename = "HomeParams", skip_serializing_if = "Option::is_none")]
    pub home_params: Option<HomeParams>,
    #[serde(
        rename = "Regions",
        deserialize_with = "go::lenient_map_or_absent",
        skip_serializing_if = "Option::is_none"
    )]
    pub regions: Option<BTreeMap<RegionId, DerpRegion>>,
    #[serde(
        rename = "omitDefaultRegions",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub omit_default_regions: bool,
}

impl From<DerpMap> for DerpMapUpdate {
    fn from(map: DerpMap) -> Self {
        Self {
            home_params: Some(map.home_params).filter(|params| *params != HomeParams::default()),
            regions: Some(map.regions),
            omit_default_regions: map.omit_default_regions,
        }
    }
}

impl DerpMap {
    /// Takes in what an update brings.
    pub fn apply(&mut self, update: DerpMapUpdate) {
        if let Some(regions) = update.regions {
            self.regions = regions;
            self.omit_default_regions = update.omit_default_regions;
        }
        if let Some(scores) = update.home_params.and_then(|params| params.region_score) {
            self.home_params.region_score = Some(scores);
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HomeParams {
    /// Factors on latency; below 1 a region is preferred as home. Absent in an update: unchanged.
    #[serde(
        rename = "RegionScore",
        deserialize_with = "go::lenient_map_or_absent",
        skip_serializing_if = "Option::is_none"
    )]
    pub region_score: Option<BTreeMap<RegionId, f64>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DerpRegion {
    #[serde(rename = "RegionID", deserialize_with = "go::null")]
    pub region_id: RegionId,
    #[serde(rename = "RegionCode", deserialize_with = "go::null")]
    pub region_code: String,
    #[serde(rename = "RegionName", deserialize_with = "go::null")]
    pub region_name: String,
    #[serde(
        rename = "Latitude",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub latitude: f64,
    #[serde(
        rename = "Longitude",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub longitude: f64,
    #[serde(
        rename = "Avoid",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub avoid: bool,
    /// Never probed and never a home; connected to when a peer lives there.
    #[serde(
        rename = "NoMeasureNoHome",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub no_measure_no_home: bool,
    /// In order of preference.
    #[serde(rename = "Nodes", deserialize_with = "go::lenient_list")]
    pub nodes: Vec<DerpNode>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DerpNode {
    #[serde(rename = "Name", deserialize_with = "go::null")]
    pub name: String,
    #[serde(rename = "RegionID", deserialize_with = "go::null")]
    pub region_id: RegionId,
    #[serde(rename = "HostName", deserialize_with = "go::null")]
    pub host_name: String,
    /// Expected name of the certificate, or `sha256-raw:` and the hex digest of the certificate itself.
    #[serde(
        rename = "CertName",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub cert_name: String,
    /// Empty: ask DNS. An address: use it. Anything else (`none`): no IPv4.
    #[serde(
        rename = "IPv4",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub ipv4: String,
    /// As [`Self::ipv4`].
    #[serde(
        rename = "IPv6",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub ipv6: String,
    /// 0: 3478. -1: none.
    #[serde(
        rename = "STUNPort",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub stun_port: i32,
    #[serde(
        rename = "STUNOnly",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub stun_only: bool,
    /// 0: 443.
    #[serde(
        rename = "DERPPort",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub derp_port: u16,
    #[serde(
        rename = "InsecureForTests",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub insecure_for_tests: bool,
    #[serde(
        rename = "STUNTestIP",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub stun_test_ip: String,
    #[serde(
        rename = "CanPort80",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub can_port80: bool,
}

/// STUN's own port.
const STUN_PORT: u16 = 3478;
/// HTTPS.
const DERP_PORT: u16 = 443;

impl DerpNode {
    /// Where its STUN server listens, if it has one.
    pub fn stun_port(&self) -> Option<u16> {
        match self.stun_port {
            0 => Some(STUN_PORT),
            port => u16::try_from(port).ok(),
        }
    }

    pub fn derp_port(&self) -> u16 {
        if self.derp_port == 0 {
            DERP_PORT
        } else {
            self.derp_port
        }
    }
}
