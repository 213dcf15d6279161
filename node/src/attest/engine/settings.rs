//! How an engine was told to run a container: the part of `HostConfig` that policy can use.

use mayfly_wire::evidence::Settings;
use serde::{Deserialize, Deserializer};

use crate::attest::capabilities;

/// Most entries of one list, and most bytes of one text. What goes beyond is unknown as a whole:
/// nothing is pushed out of a list by what else is in it.
const MOST_ENTRIES: usize = 256;
const MOST_BYTES: usize = 4096;

/// `HostConfig` of `GET /containers/{id}/json`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HostConfig {
    privileged: Option<bool>,
    #[serde(deserialize_with = "list")]
    cap_add: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    cap_drop: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    security_opt: Option<Vec<String>>,
    pid_mode: Option<String>,
    ipc_mode: Option<String>,
    userns_mode: Option<String>,
    network_mode: Option<String>,
    readonly_rootfs: Option<bool>,
    #[serde(deserialize_with = "list")]
    devices: Option<Vec<Device>>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
struct Device {
    path_on_host: String,
}

/// An engine writes `null` for an empty list. One that is not there was not said.
fn list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let list = Option::<Vec<T>>::deserialize(deserializer)?;
    Ok(Some(list.unwrap_or_default()))
}

impl HostConfig {
    pub(super) fn into_evidence(self) -> Settings {
        // Their length is not looked at: one may be a whole profile.
        let few = |options: &Vec<String>| options.len() <= MOST_ENTRIES;
        let options = self.security_opt.filter(few);
        let confined = |by| profile(self.privileged?, options.as_deref()?, by);
        Settings {
            privileged: self.privileged,
            seccomp: confined("seccomp").map(|profile| match profile {
                // The profile's whole text, or where it was read from.
                other if !matches!(other, UNCONFINED | DEFAULT) => "custom".to_owned(),
                known => known.to_owned(),
            }),
            apparmor: confined("apparmor").map(str::to_owned),
            granted_capabilities: granted(self.privileged, self.cap_add, self.cap_drop),
            pid_mode: self.pid_mode.and_then(mode),
            ipc_mode: self.ipc_mode.and_then(mode),
            user_mode: self.userns_mode.and_then(mode),
            network_mode: self.network_mode.and_then(mode),
            read_only_root: self.readonly_rootfs,
            devices: self.devices.and_then(|devices| {
                let paths = devices.into_iter().map(|device| device.path_on_host);
                bounded(paths.collect()).map(sorted)
            }),
        }
    }
}

const DEFAULT: &str = "default";
const UNCONFINED: &str = "unconfined";

/// What `--security-opt` says of one kind of confinement. Engines take `=` and the older `:`. Of two,
/// the weaker counts; and a privileged container counts as unconfined, because only some engines
/// then heed a profile.
fn profile<'a>(privileged: bool, options: &'a [String], by: &str) -> Option<&'a str> {
    let mut found = if privileged { UNCONFINED } else { DEFAULT };
    for option in options {
        let rest = option.strip_prefix(by);
        let Some(value) = rest.and_then(|rest| rest.strip_prefix(['=', ':'])) else {
            continue;
        };
        match value {
            UNCONFINED => found = UNCONFINED,
            "builtin" | DEFAULT | "" => {}
            // Such a name would be as long as a profile's text may be.
            long if by == "apparmor" && long.len() > MOST_BYTES => return None,
            _ if found == UNCONFINED => {}
            named => found = named,
        }
    }
    Some(found)
}

/// What was given beyond the engine's default.
fn granted(
    privileged: Option<bool>,
    added: Option<Vec<String>>,
    dropped: Option<Vec<String>>,
) -> Option<Vec<String>> {
    let every = || capabilities::NAMES.iter().map(|name| (*name).to_owned());
    if privileged? {
        return Some(sorted(every().collect()));
    }
    let plain = |names: Vec<String>| -> Option<Vec<String>> {
        let plain = bounded(names)?.into_iter().map(|name| {
            let name = name.to_ascii_lowercase();
            name.strip_prefix("cap_").map(str::to_owned).unwrap_or(name)
        });
        Some(plain.collect())
    };
    let (added, dropped) = (plain(added?)?, plain(dropped?)?);
    // What is both added by its name and dropped is added.
    let mut granted: Vec<String> = added
        .iter()
        .filter(|name| *name != "all")
        .cloned()
        .collect();
    if granted.len() != added.len() {
        granted.extend(every().filter(|name| !dropped.contains(name)));
    }
    Some(sorted(granted))
}

/// An engine that was told nothing says nothing.
fn mode(text: String) -> Option<String> {
    match text.as_str() {
        "" => Some(DEFAULT.to_owned()),
        long if long.len() > MOST_BYTES => None,
        _ => Some(text),
    }
}

fn bounded(list: Vec<String>) -> Option<Vec<String>> {
    let short = list.len() <= MOST_ENTRIES && list.iter().all(|text| text.len() <= MOST_BYTES);
    short.then_some(list)
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list.dedup();
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn settings(config: Value) -> Settings {
        let config: HostConfig = serde_json::from_value(config).unwrap();
        config.into_evidence()
    }

    fn strings(texts: &[&str]) -> Option<Vec<String>> {
        Some(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    /// As Docker 20.10 writes it.
    fn ordinary() -> Value {
        json!({"Privileged": false, "CapAdd": null, "CapDrop": null, "PidMode": "",
            "IpcMode": "private", "UsernsMode": "", "NetworkMode": "none", "SecurityOpt": null,
            "ReadonlyRootfs": false, "Devices": [], "Memory": 0})
    }

    fn with(changes: Value) -> Settings {
        let mut config = ordinary();
        let all = config.as_object_mut().unwrap();
        all.extend(changes.as_object().unwrap().clone());
        settings(config)
    }

    #[test]
    fn an_ordinary_container() {
        let expected = Settings {
            privileged: Some(false),
            granted_capabilities: Some(Vec::new()),
            seccomp: Some("default".to_owned()),
            apparmor: Some("default".to_owned()),
            pid_mode: Some("default".to_owned()),
            ipc_mode: Some("private".to_owned()),
            user_mode: Some("default".to_owned()),
            network_mode: Some("none".to_owned()),
            read_only_root: Some(false),
            devices: Some(Vec::new()),
        };
        assert_eq!(settings(ordinary()), expected);
    }

    #[test]
    fn what_is_not_said_is_unknown() {
        assert_eq!(settings(json!({})), Settings::default());
        for key in ordinary().as_object().unwrap().keys() {
            let mut config = ordinary();
            config.as_object_mut().unwrap().remove(key);
            let found = settings(config);
            assert_eq!(found == settings(ordinary()), key == "Memory", "{key}");
            let unknown = match key.as_str() {
                "Privileged" => found.granted_capabilities.is_none() && found.seccomp.is_none(),
                "CapAdd" | "CapDrop" => found.granted_capabilities.is_none(),
                "SecurityOpt" => found.seccomp.is_none() && found.apparmor.is_none(),
                _ => true,
            };
            assert!(unknown, "{key}: {found:?}");
        }
        for odd in [
            json!({"Privileged": "no"}),
            json!({"CapAdd": "ALL"}),
            json!({"Devices": [{}]}),
        ] {
            assert!(serde_json::from_value::<HostConfig>(odd).is_err());
        }
    }

    #[test]
    fn a_privileged_one_has_every_capability_and_no_confinement() {
        let found = with(json!({"Privileged": true, "CapDrop": ["ALL"],
            "SecurityOpt": ["label=disable", "seccomp={}"]}));
        assert_eq!(found.privileged, Some(true));
        assert_eq!(
            found.granted_capabilities.unwrap().len(),
            capabilities::NAMES.len()
        );
        assert_eq!(found.seccomp.as_deref(), Some("unconfined"));
        assert_eq!(found.apparmor.as_deref(), Some("unconfined"));
    }

    #[test]
    fn capabilities_are_those_beyond_the_default() {
        let granted = |add: &[&str], drop: &[&str]| {
            with(json!({"CapAdd": add, "CapDrop": drop})).granted_capabilities
        };
        assert_eq!(
            granted(&["SYS_PTRACE", "CAP_BPF"], &["ALL"]),
            strings(&["bpf", "sys_ptrace"])
        );
        assert_eq!(
            granted(&["cap_Sys_Admin"], &["SYS_ADMIN"]),
            strings(&["sys_admin"])
        );
        assert_eq!(granted(&[], &["CHOWN"]), strings(&[]));
        let most = granted(&["ALL"], &["CAP_SYS_ADMIN"]).unwrap();
        assert_eq!(most.len(), capabilities::NAMES.len() - 1);
        assert!(!most.contains(&"sys_admin".to_owned()) && most.is_sorted());
        let both = granted(&["ALL", "SYS_ADMIN"], &["SYS_ADMIN"]).unwrap();
        assert_eq!(both.len(), capabilities::NAMES.len());
    }

    #[test]
    fn the_weaker_of_two_profiles_counts() {
        for (options, seccomp, apparmor) in [
            (&["seccomp=unconfined"][..], "unconfined", "default"),
            (
                &["seccomp:unconfined", "apparmor:unconfined"],
                "unconfined",
                "unconfined",
            ),
            (
                &["seccomp=unconfined", "seccomp={}"],
                "unconfined",
                "default",
            ),
            (&["seccomp={\"a\":1}", "apparmor=mine"], "custom", "mine"),
            (
                &["seccomp=builtin", "no-new-privileges", "label=disable"],
                "default",
                "default",
            ),
            (
                &["seccompunconfined", "xseccomp=unconfined"],
                "default",
                "default",
            ),
        ] {
            let found = with(json!({ "SecurityOpt": options }));
            assert_eq!(found.seccomp.as_deref(), Some(seccomp), "{options:?}");
            assert_eq!(found.apparmor.as_deref(), Some(apparmor), "{options:?}");
        }
        let long = format!("seccomp={}", "x".repeat(1 << 20));
        let found = with(json!({ "SecurityOpt": [long] }));
        assert_eq!(found.seccomp.as_deref(), Some("custom"));
    }

    #[test]
    fn what_is_too_much_is_unknown() {
        let many = vec!["CHOWN"; MOST_ENTRIES + 1];
        let found = with(json!({"CapAdd": many, "SecurityOpt": many}));
        assert_eq!((found.granted_capabilities, found.seccomp), (None, None));
        let long = "x".repeat(MOST_BYTES + 1);
        let found = with(json!({"CapDrop": [long], "PidMode": long,
            "SecurityOpt": [format!("apparmor={long}")], "Devices": [{"PathOnHost": long}]}));
        assert_eq!((found.granted_capabilities, found.apparmor), (None, None));
        assert_eq!((found.pid_mode, found.devices), (None, None));
    }

    #[test]
    fn modes_and_devices_are_the_engines_words() {
        let found = with(
            json!({"PidMode": "host", "IpcMode": "container:7", "ReadonlyRootfs": true,
            "Devices": [{"PathOnHost": "/dev/b", "PathInContainer": "/x"}, {"PathOnHost": "/dev/a"}]}),
        );
        assert_eq!(found.pid_mode.as_deref(), Some("host"));
        assert_eq!(found.ipc_mode.as_deref(), Some("container:7"));
        assert_eq!(found.read_only_root, Some(true));
        assert_eq!(found.devices, strings(&["/dev/a", "/dev/b"]));
    }
}
