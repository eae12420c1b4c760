//! The names under which device-mapper knows our devices.
//!
//! A device is told by its uuid, which nobody can change; the name is for people. Both are made of the pool's identity
//! and the thin device's number: two pools never meet, and what an earlier process left behind is found again.

use crate::error::{Error, ErrorKind, Result};
use crate::units::DeviceId;

/// What starts each of our uuids.
const UUID_PREFIX: &str = "THINSNAP-";
/// What starts each of our names.
const NAME_PREFIX: &str = "thinsnap-";
/// Hexadecimal digits of the identity that stand in names.
const NAME_DIGITS: usize = 12;
/// Longest stand-in for an identity.
const STAND_IN_MAX: usize = 32;

/// The names of one pool's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    short: String,
    long: String,
}

impl Names {
    /// Names for a pool with this identity; a pool without one (all zero) needs a stand-in.
    pub(super) fn new(identity: [u8; 16], stand_in: Option<&str>) -> Result<Self> {
        if identity != [0; 16] {
            let long: String = identity.iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok(Self { short: long[..NAME_DIGITS].to_owned(), long });
        }
        let Some(name) = stand_in else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the pool has no identity, because another program made it: give it a name for its devices",
            ));
        };
        let sound = (1..=STAND_IN_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
        if !sound {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{name:?} is no name for a pool's devices: it takes 1 to {STAND_IN_MAX} letters and digits"),
            ));
        }
        Ok(Self { short: name.to_owned(), long: format!("named-{name}") })
    }

    pub(super) fn pool_name(&self) -> String {
        format!("{NAME_PREFIX}{}-pool", self.short)
    }

    pub(super) fn pool_uuid(&self) -> String {
        format!("{UUID_PREFIX}{}-pool", self.long)
    }

    pub(super) fn thin_name(&self, id: DeviceId) -> String {
        format!("{NAME_PREFIX}{}-{id}", self.short)
    }

    pub(super) fn thin_uuid(&self, id: DeviceId) -> String {
        format!("{UUID_PREFIX}{}-{id}", self.long)
    }

    /// The thin device with this name, if it is one of this pool's.
    pub(super) fn thin_id(&self, name: &str) -> Option<DeviceId> {
        let number = name.strip_prefix(NAME_PREFIX)?.strip_prefix(self.short.as_str())?.strip_prefix('-')?;
        let id = DeviceId::new(number.parse().ok()?).ok()?;
        // `007` and `+7` are not ours.
        (self.thin_name(id) == name).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::Names;
    use crate::error::ErrorKind;
    use crate::units::DeviceId;

    #[test]
    fn a_thin_device_is_found_by_its_name_and_nothing_else_is() {
        let names = Names::new([0xab; 16], None).unwrap();
        let id = DeviceId::new(17).unwrap();
        assert_eq!(names.thin_name(id), "thinsnap-abababababab-17");
        assert_eq!(names.thin_uuid(id), format!("THINSNAP-{}-17", "ab".repeat(16)));
        assert_eq!(names.thin_id("thinsnap-abababababab-17"), Some(id));
        for other in [
            "thinsnap-abababababab-pool",
            "thinsnap-abababababab-017",
            "thinsnap-abababababab-+17",
            "thinsnap-abababababab-16777216",
            "thinsnap-abababababac-17",
            "thinsnap-abababababab17",
            "vg-pool-tpool",
            "",
        ] {
            assert_eq!(names.thin_id(other), None, "{other}");
        }
    }

    #[test]
    fn a_pool_without_an_identity_needs_a_name() {
        assert_eq!(Names::new([0; 16], None).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(Names::new([0; 16], Some("docker")).unwrap().pool_name(), "thinsnap-docker-pool");
        for bad in ["", "a b", "a/b", "ü", &"x".repeat(33)] {
            assert_eq!(Names::new([0; 16], Some(bad)).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
