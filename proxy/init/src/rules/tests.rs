use std::path::PathBuf;
use std::str::FromStr;

use proptest::prelude::*;

use super::*;

/// Output of `iptables-save -t nat` in a new network namespace.
const FRESH: &str =
    "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";

fn config(inbound: &str, outbound: &str, ips: &str) -> InitConfig {
    fn list<T: FromStr>(text: &str) -> Vec<T>
    where
        T::Err: fmt::Debug,
    {
        text.split(',').filter(|item| !item.is_empty()).map(|item| item.parse().unwrap()).collect()
    }
    InitConfig {
        exclude_inbound_ports: list(inbound),
        exclude_outbound_ports: list(outbound),
        exclude_outbound_ips: list(ips),
    }
}

/// Output of `iptables-save` after a script was applied in a new network namespace.
fn saved_after(script: &str) -> String {
    let lines = script.lines().filter(|line| !line.starts_with("-D"));
    lines
        .map(|line| line.replace("-I OUTPUT 1", "-A OUTPUT").replace("-I PREROUTING 1", "-A PREROUTING") + "\n")
        .collect()
}

/// Compares with `tests/golden/<name>.rules`; WEFT_BLESS=1 writes it.
fn check(name: &str, script: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.rules"));
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(&path, script).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(script, golden, "{} is not what rules() makes; WEFT_BLESS=1 writes it", path.display());
}

#[test]
fn golden_scripts_match() {
    let all = config("22,8000-8010", "25,6000-6001", "10.1.2.3/8,169.254.169.254/32,fd00::/8");
    let first = rules(&InitConfig::default(), Family::V4, FRESH);
    check("default.v4", &first);
    check("default.v6", &rules(&InitConfig::default(), Family::V6, FRESH));
    check("excluded.v4", &rules(&all, Family::V4, FRESH));
    check("excluded.v6", &rules(&all, Family::V6, FRESH));
    check("again.v4", &rules(&all, Family::V4, &saved_after(&first)));
    let foreign = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n-A OUTPUT -p tcp -j WEFT_OUTPUT\n-A OUTPUT -j WEFT_OUTPUT\nCOMMIT\n";
    check("beside-others.v4", &rules(&InitConfig::default(), Family::V4, foreign));
}

#[test]
fn port_ranges_are_written_as_iptables_does() {
    for (text, expected) in [("22", "22"), ("8000-8010", "8000:8010"), ("7-7", "7"), ("65535", "65535")] {
        assert_eq!(text.parse().map(|ports| dport(&ports)).as_deref(), Ok(expected), "{text}");
    }
    for text in ["", "0", "65536", "9-8", "1-", "-1", "+1", "http", "1-2-3", " 22", "22;reboot"] {
        assert!(text.parse::<PortRange>().is_err(), "{text:?}");
    }
}

#[test]
fn verify_reports_the_first_difference() {
    let script = rules(&config("22", "", ""), Family::V4, FRESH);
    let saved = saved_after(&script);
    assert_eq!(verify(&script, &saved), Ok(()));
    let jump = |times| Err(Mismatch::Jump { from: "OUTPUT", to: OUTPUT, times });
    let line = saved.lines().find(|line| line.starts_with("-A OUTPUT")).unwrap().to_owned() + "\n";
    assert_eq!(verify(&script, &saved.replace(&line, "")), jump(0), "a jump is missing");
    assert_eq!(verify(&script, &saved.replace(&line, &line.repeat(2))), jump(2), "a jump is there twice");
    let missing: String =
        saved.lines().filter(|line| !line.contains("excluded")).map(|line| format!("{line}\n")).collect();
    assert_eq!(
        verify(&script, &missing).unwrap_err().to_string(),
        "rule 3 of WEFT_INBOUND should be \"weft: excluded inbound port -> RETURN\" and is \"weft: to the proxy, inbound -> REDIRECT --to-ports 15006\""
    );
    assert!(verify(&script, FRESH).is_err(), "no rules");
}

#[test]
fn only_global_ipv6_addresses_outside_loopback_need_redirection() {
    let loopback = "00000000000000000000000000000001 01 80 10 80       lo\n";
    let link = "fe800000000000000000000000000001 02 40 20 80     eth0\n";
    let unique_local = "fd000000000000000000000000000002 02 40 00 80     eth0\n";
    for (desc, lines, expected) in [
        ("no file, or an empty one", String::new(), false),
        ("loopback and link-local", format!("{loopback}{link}"), false),
        ("unique local", format!("{loopback}{link}{unique_local}"), true),
        ("global scope, but on loopback", unique_local.replace("eth0", "lo"), false),
    ] {
        assert_eq!(has_ipv6(&lines), expected, "{desc}");
    }
}

fn any_config() -> impl Strategy<Value = InitConfig> {
    let ports = || {
        let range = (1u16.., 0u16..50).prop_map(|(first, more)| format!("{first}-{}", first.saturating_add(more)));
        prop::collection::vec(range.prop_map(|text| text.parse::<PortRange>().unwrap()), 0..6)
    };
    let ips = prop::collection::vec(
        prop_oneof![
            (any::<u32>(), 0u8..=32)
                .prop_map(|(ip, len)| IpNet::new(std::net::Ipv4Addr::from(ip).into(), len).unwrap()),
            (any::<u128>(), 0u8..=128)
                .prop_map(|(ip, len)| IpNet::new(std::net::Ipv6Addr::from(ip).into(), len).unwrap()),
        ],
        0..6,
    );
    (ports(), ports(), ips).prop_map(|(inbound, outbound, ips)| InitConfig {
        exclude_inbound_ports: inbound,
        exclude_outbound_ports: outbound,
        exclude_outbound_ips: ips,
    })
}

proptest! {
    #[test]
    fn scripts_are_idempotent_and_never_redirect_the_proxy(config in any_config(), v6: bool) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let script = rules(&config, family, FRESH);
        let at = |part: &str| script.lines().position(|line| line.contains(part));
        let redirect = |chain: &str| script.lines().position(|line| line.starts_with(&format!("-A {chain}")) && line.contains("REDIRECT")).unwrap();

        prop_assert!(at("--uid-owner 15015").unwrap() < redirect(OUTPUT), "the proxy's own traffic is never redirected");
        let first = script.lines().find(|line| line.starts_with("-A WEFT_OUTPUT")).unwrap();
        prop_assert!(first.contains("--uid-owner"), "nothing precedes it: {first}");
        for line in script.lines().filter(|line| line.starts_with('-')) {
            prop_assert!(line.contains("-m comment --comment \"weft: "), "without a comment: {line}");
            prop_assert!(line.contains("-p tcp"), "not only TCP: {line}");
        }
        for (chain, ranges) in [(INBOUND, &config.exclude_inbound_ports), (OUTPUT, &config.exclude_outbound_ports)] {
            for ports in ranges {
                let rule = script.lines().position(|line| line.starts_with(&format!("-A {chain} ")) && line.contains(&format!("--dport {} ", dport(ports))) && line.ends_with("RETURN"));
                prop_assert!(rule.unwrap() < redirect(chain), "an excluded port is redirected: {ports}");
            }
        }
        prop_assert_eq!(script.matches("REDIRECT").count(), 2);
        prop_assert!(script.starts_with("*nat\n") && script.ends_with("\nCOMMIT\n") && script.matches("COMMIT").count() == 1, "one transaction");

        let saved = saved_after(&script);
        prop_assert_eq!(verify(&script, &saved), Ok(()));
        let again = rules(&config, family, &saved);
        prop_assert_eq!(saved_after(&again), saved, "a second run leaves the same rules");
        prop_assert_eq!(again.matches("\n-D ").count(), 2, "and removes the jumps of the first");
    }
}
