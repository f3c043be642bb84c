//! docs/configuration.md, made from the table of keys. A test compares it with the file; run it
//! with `KAGAMI_WRITE_DOCS=1` to write the file anew.

use std::fmt::Write as _;

use super::keys::{self, Change, Fallback, Section};

const OPENING: &str = "\
# Configuration

<!-- Made from cli/src/config/keys.rs: KAGAMI_WRITE_DOCS=1 cargo test -p kagami documents -->

kagami reads one TOML file: the one named with `--config` or in `KAGAMI_CONFIG`, else
`/etc/kagami/kagami.toml` where it exists, else `kagami.toml` in the user's own configuration
folder (`~/.config/kagami`; for root `/etc/kagami`). `kagami init` and `kagami pair` write it;
comments stay when a command changes it.

Unknown keys are errors. Sizes carry a unit (`\"20G\"` and `\"20GiB\"` are 20 · 2^30 bytes, `\"20GB\"`
is 20 · 10^9) or are whole numbers of bytes; times always carry a unit (`\"500ms\"`, `\"2s\"`, `\"10m\"`).
`kagami config check` reads the file as the daemon would; `kagami config show --defaults` prints
every key, its value and where it came from.

*Live*: `kagami reload` hands the change to the running daemon. *Restart*: it takes effect when the
daemon is started again, and `kagami reload` says so. *Never*: it belongs to a store that exists.

An example:

```toml
[node]
name = \"alpha\"
id = 4711
listen = [\"10.0.0.1:7789\"]

[mirror.pg]
uuid = \"6f1c2d3e4b5a69788796a5b4c3d2e1f0\"
size = \"20GiB\"
backing = \"/dev/vg0/pg\"
metadata = \"/dev/vg0/pg-meta\"
protocol = \"C\"
solo = \"arbiter\"
peer = \"beta\"
arbiter = \"witness1\"

[mirror.pg.resync]
latency-target = \"2x\"
max-rate = \"unlimited\"

[peer.beta]
id = 4712
addresses = [\"10.0.0.2:7789\", \"[fd00::2]:7789\"]
fingerprints = [\"sha256:1111111111111111111111111111111111111111111111111111111111111111\"]

[arbiter.witness1]
addresses = [\"10.0.0.3:7790\"]
fingerprints = [\"sha256:2222222222222222222222222222222222222222222222222222222222222222\"]
```
";

/// The whole document.
pub fn markdown() -> String {
    let mut text = OPENING.to_owned();
    for section in Section::ALL {
        let _ = write!(
            text,
            "\n## `{}`\n\n{}\n\n| key | value | default | change | meaning |\n|---|---|---|---|---|\n",
            section.heading("NAME"),
            section.about()
        );
        for key in keys::of(section) {
            let default = spelled_default(key);
            let change = match key.change {
                Change::Live => "live",
                Change::Restart => "restart",
                Change::Never => "never",
            };
            let _ = writeln!(
                text,
                "| `{}` | {} | {default} | {change} | {} |",
                key.name,
                key.kind.spelled(),
                key.explanation
            );
        }
    }
    text
}

fn spelled_default(key: &keys::Key) -> String {
    match key.fallback {
        Fallback::Value(text) => {
            format!("`{}`", super::read::default_entry(key, text).written)
        }
        Fallback::Nothing(meaning) | Fallback::Derived(meaning) => meaning.to_owned(),
        Fallback::Required => "required".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::config::places::Places;

    #[test]
    fn the_file_in_docs_is_the_table() {
        crate::documents::assert_current("configuration.md", &markdown());
    }

    #[test]
    fn the_example_is_right() {
        let text = markdown();
        let example = text
            .split("```toml\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .unwrap();
        Config::parse(Path::new("example.toml"), example, &Places::of_root()).unwrap();
    }
}
