//! The commands that can be typed instead of text.

use std::path::PathBuf;
use std::str::FromStr;

pub(super) const HELP: &str = "\
a line is appended to the text, and the model continues it; after an empty one it continues as well
/reset          begins a new text
/seed N         where the random numbers start; each turn draws others
/temperature X  how bold choices are; 0 always takes the likeliest token
/top-p X        draws only from the likeliest tokens that together have this probability
/save FILE      writes the text so far, yours and the model's, to a file
/quit           ends this program, as does Ctrl-D";

pub(super) const CHAT_HELP: &str = "\
a line is a message, which the model answers
/reset          begins a new conversation, with the same system message
/system TEXT    sets the system message, which tells the model how to answer; without TEXT there is none
/seed N         where the random numbers start; each turn draws others
/temperature X  how bold choices are; 0 always takes the likeliest token
/top-p X        draws only from the likeliest tokens that together have this probability
/save FILE      writes the conversation to a file, as the model reads it
/quit           ends this program, as does Ctrl-D";

/// A line that begins with `/`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ReplCommand {
    Reset,
    System(String),
    Seed(u64),
    Temperature(f32),
    TopP(f64),
    Save(PathBuf),
    Help,
    Quit,
}

impl FromStr for ReplCommand {
    type Err = String;

    /// Parses what follows the `/`.
    fn from_str(line: &str) -> Result<Self, String> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let alone = |command| match rest {
            "" => Ok(command),
            _ => Err(format!("/{name} stands alone")),
        };
        match name {
            "reset" => alone(Self::Reset),
            "system" => Ok(Self::System(rest.into())),
            "help" => alone(Self::Help),
            "quit" => alone(Self::Quit),
            "seed" => number(name, rest, "a whole number").map(Self::Seed),
            "temperature" => number(name, rest, "a number").map(Self::Temperature),
            "top-p" => number(name, rest, "a number").map(Self::TopP),
            "save" if rest.is_empty() => Err("/save takes the name of a file".into()),
            "save" => Ok(Self::Save(rest.into())),
            _ => Err(format!("there is no command /{name}; /help lists them")),
        }
    }
}

fn number<T: FromStr>(name: &str, rest: &str, what: &str) -> Result<T, String> {
    let parsed = rest.parse();
    parsed.map_err(|_| format!("/{name} takes {what}, and {rest:?} is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_or_explained() {
        let parse = |line: &str| line.parse::<ReplCommand>();
        assert_eq!(parse("reset"), Ok(ReplCommand::Reset));
        assert_eq!(parse("seed 7"), Ok(ReplCommand::Seed(7)));
        let system = |text: &str| Ok(ReplCommand::System(text.into()));
        assert_eq!(parse("system Be brief. "), system("Be brief."));
        assert_eq!(parse("system"), system(""));
        assert_eq!(
            parse("temperature  0.8 "),
            Ok(ReplCommand::Temperature(0.8))
        );
        assert_eq!(parse("top-p\t0.9"), Ok(ReplCommand::TopP(0.9)));
        assert_eq!(
            parse("save a b.txt"),
            Ok(ReplCommand::Save("a b.txt".into()))
        );
        for wrong in [
            "",
            "rest",
            "reset now",
            "seed",
            "seed -1",
            "seed x",
            "top-p",
            "save ",
            "temperature x",
            "/etc",
            "help me",
        ] {
            assert!(!parse(wrong).unwrap_err().is_empty(), "{wrong}");
        }
        // Each is in the help.
        for name in ["reset", "seed", "temperature", "top-p", "save", "quit"] {
            for help in [HELP, CHAT_HELP] {
                assert!(help.contains(&format!("\n/{name} ")), "{name}");
            }
        }
    }
}
