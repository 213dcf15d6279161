use super::*;
use crate::publish::Access;

const ACCESS: Access = Access {
    mode: 0o400,
    uid: None,
    gid: Some(9),
};

fn config(text: &str) -> Result<Config, String> {
    let written: Written = toml::from_str(text).map_err(|error| error.to_string())?;
    Config::check(written, ACCESS, Path::new("/nowhere"))
}

#[test]
fn nothing_is_what_an_empty_file_says() {
    let config = config("").unwrap();
    assert!(config.outputs.is_empty() && config.notify.is_empty() && !config.only_outputs);
    assert_eq!(config.rest_end(7), End::at(7));
}

#[test]
fn everything_can_be_said() {
    let config = config(
        r#"
        only_outputs = true
        on_expiry = "keep-stale"
        max_stale = "1h"

        [[output]]
        credential = "orders-db"
        file = "conf/db.env"
        format = "env"
        prefix = "DB_"
        mode = "0440"
        owner = 1000

        [[output]]
        credential = ["orders-db", "tls"]
        file = "app.conf"
        format = "template"
        template = "{{ secrets['orders-db'].password }}"
        on_expiry = "stop-application"

        [[output]]
        credential = "tls"
        format = "fields"
        max_stale = "2h"

        [application]
        process = "name:nginx"

        [[notify]]
        on = ["conf/db.env", "tls"]
        signal = "HUP"

        [[notify]]
        http = "http://[::1]:9000/-/reload?a=b"
        debounce = "1s"
        attempts = 2

        [acknowledge]
        timeout = "5s"
        "#,
    )
    .unwrap();
    let [env, template, fields] = config.outputs.as_slice() else {
        panic!()
    };
    assert_eq!(
        (env.access.mode, env.access.uid, env.access.gid),
        (0o440, Some(1000), Some(9))
    );
    assert_eq!(env.end(5).gone_at, 3_600_005);
    assert_eq!((template.end(5).gone_at, template.stops()), (5, true));
    assert_eq!(
        (fields.item.as_str(), fields.end(0).gone_at),
        ("tls", 7_200_000)
    );
    assert_eq!(config.used().len(), 2);
    let Action::Http { address, path } = &config.notify[1].action else {
        panic!()
    };
    assert_eq!(
        (address.to_string().as_str(), path.as_str()),
        ("[::1]:9000", "/-/reload?a=b")
    );
    assert_eq!(config.acknowledge.unwrap().timeout.0.as_secs(), 5);
}

#[test]
fn a_credential_stands_for_its_outputs() {
    let config = config(
        "[application]\nprocess = \"init\"\n\
         [[output]]\ncredential = \"a\"\nfile = \"x\"\nformat = \"json\"\n\
         [[output]]\ncredential = \"a\"\nfile = \"y\"\nformat = \"env\"\n\
         [[notify]]\non = [\"a\", \"b\", \"x\"]\nsignal = \"HUP\"\n",
    );
    let config = config.unwrap();
    let on: Vec<_> = config.notify[0].on.iter().map(Item::as_str).collect();
    assert_eq!(on, ["x", "y", "b", "x"]);
    let names = |names: &[&str]| -> Vec<CredentialName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    };
    assert!(config.check_want(None).is_ok());
    assert!(config.check_want(Some(&names(&["a", "c"]))).is_ok());
    let said = config.check_want(Some(&names(&["c"]))).unwrap_err();
    assert!(said.contains("made of a,"), "{said}");
}

#[test]
fn mistakes_name_what_was_expected() {
    let output = |more: &str| format!("[[output]]\ncredential = \"a\"\n{more}");
    let notify = |more: &str| format!("[application]\nprocess = \"init\"\n[[notify]]\n{more}");
    for (text, part) in [
        ("nonsense = 1".to_owned(), "nonsense"),
        (output("format = \"json\""), "expected `file`"),
        (output("format = \"xml\"\nfile = \"a\""), "xml"),
        (
            output("format = \"json\"\nfile = \"../a\""),
            "inside the publishing directory",
        ),
        (
            output("format = \"json\"\nfile = \"/a\""),
            "inside the publishing directory",
        ),
        (
            output("format = \"json\"\nfile = \"..data\""),
            "inside the publishing directory",
        ),
        (
            output("format = \"json\"\nfile = \"b\"\nfield = \"x\""),
            "field does not go",
        ),
        (
            output("format = \"template\"\nfile = \"b\""),
            "one of `template`",
        ),
        (
            output("format = \"template\"\nfile = \"b\"\ntemplate = \"{{\""),
            "output b: the template",
        ),
        (
            output("format = \"template\"\nfile = \"b\"\ntemplate_file = \"t\""),
            "/nowhere/t",
        ),
        (
            output("format = \"raw\"\nmode = \"0666\""),
            "expected \"0400\"",
        ),
        (output("format = \"raw\"\nowner = 4294967295"), "below"),
        (output("format = \"raw\"\nowner = \"app\""), "owner"),
        (output("format = \"raw\"\nmax_stale = \"1h\""), "keep-stale"),
        (output("format = \"raw\"\non_expiry = \"panic\""), "panic"),
        (
            output("format = \"url\"\nfile = \"u\"\nscheme = \"a/b\""),
            "scheme",
        ),
        (
            output("format = \"raw\"\non_expiry = \"stop-application\""),
            "[application]",
        ),
        (
            output("format = \"raw\"\n") + &output("format = \"raw\"\nfile = \"a/b\"\n"),
            "collides",
        ),
        (
            "[[output]]\ncredential = [\"a\", \"b\"]\nfile = \"f\"\nformat = \"env\"".into(),
            "one name",
        ),
        (
            "[application]\nprocess = \"/run/app.pid\"".to_owned(),
            "\"parent\"",
        ),
        ("[[notify]]\nsignal = \"HUP\"".to_owned(), "[application]"),
        (notify("signal = \"HUPP\""), "HUPP"),
        (
            notify("signal = \"HUP\"\nrestart = true"),
            "expected one of",
        ),
        (notify(""), "expected one of"),
        (notify("command = [\"reload\"]"), "absolute path"),
        (notify("command = \"reload now\""), "command"),
        (notify("http = \"http://example.com/\""), "127.0.0.1"),
        (notify("http = \"http://10.0.0.1/\""), "127.0.0.1"),
        (notify("http = \"https://127.0.0.1/\""), "127.0.0.1"),
        (notify("http = \"http://x@127.0.0.1/\""), "127.0.0.1"),
        (notify("restart = true\nattempts = 0"), "1 to 100"),
        (
            notify("restart = true\ntimeout = \"soon\""),
            "such as 500ms",
        ),
        (
            notify("restart = true\non = [\"A\"]"),
            "nothing is published at A",
        ),
        ("[acknowledge]".to_owned(), "expected a `file`"),
        ("[acknowledge]\nfile = \"loaded\"".to_owned(), "absolute"),
        (
            "[application]\nprocess = \"init\"\nexit_with = true".to_owned(),
            "cannot go with",
        ),
    ] {
        let said = config(&text).err().unwrap_or_else(|| panic!("{text}"));
        assert!(said.contains(part), "{text}\n{said}");
    }
}

#[test]
fn a_file_is_named_when_it_is_wrong() {
    let path = std::env::temp_dir().join(format!("mayfly-config-{}.toml", std::process::id()));
    std::fs::write(&path, "only_outputs = 3").unwrap();
    let said = Config::read(&path, ACCESS).err().unwrap().to_string();
    assert!(
        said.contains(path.to_str().unwrap()) && said.contains("only_outputs"),
        "{said}"
    );
    std::fs::write(&path, "#".repeat(MAX_FILE + 1)).unwrap();
    let said = Config::read(&path, ACCESS).err().unwrap().to_string();
    assert!(said.contains("at most"), "{said}");
    let writable = std::os::unix::fs::PermissionsExt::from_mode(0o664);
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, writable).unwrap();
    let said = Config::read(&path, ACCESS).err().unwrap().to_string();
    assert!(said.contains("nobody but root"), "{said}");
    std::fs::remove_file(&path).unwrap();
    let said = Config::read(Path::new("/"), ACCESS)
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("expected a file"), "{said}");
}
