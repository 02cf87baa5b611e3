//! Colours and widths of what a person reads on a terminal.
//!
//! In: `--color`, `NO_COLOR`, and whether standard output is a terminal. Out: text with or without escape sequences, and lines that
//! fit. All signs are ASCII, so that no locale can break them.

use std::{
    io::{self, IsTerminal as _},
    sync::atomic::{AtomicU8, Ordering},
};

use clap::ValueEnum;

/// Whether output is coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// As the command line has it.
static CHOICE: AtomicU8 = AtomicU8::new(0);

/// A colour, or what stands for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// Well.
    Good,
    /// To be looked at.
    Doubtful,
    /// Wrong.
    Bad,
    /// What something is about.
    Strong,
    /// What matters less.
    Faint,
}

/// Takes the choice of the command line, for the whole process.
pub fn choose(color: Color) {
    CHOICE.store(color as u8, Ordering::Relaxed);
}

/// Whether what goes to a channel is coloured; `is_terminal` says whether that is one.
pub fn is_coloured(is_terminal: bool) -> bool {
    match CHOICE.load(Ordering::Relaxed) {
        choice if choice == Color::Always as u8 => true,
        choice if choice == Color::Never as u8 => false,
        _ => {
            is_terminal
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        }
    }
}

/// The text in a colour for standard output, if that has any. Text of others is escaped before.
pub fn paint(text: &str, paint: Paint) -> String {
    if !is_coloured(io::stdout().is_terminal()) {
        return text.to_owned();
    }
    let code = match paint {
        Paint::Good => 32,
        Paint::Doubtful => 33,
        Paint::Bad => 31,
        Paint::Strong => 1,
        Paint::Faint => 2,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// How many columns standard output has; `None` where it is no terminal, and lines are as long as they are.
pub fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)).filter(|width| *width > 0)
}

/// Breaks a line between words where it is wider than `width`; what follows stands `indent` columns in. A word that is wider
/// than that stays whole.
pub fn wrap(line: &str, indent: usize, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| line.chars().count() > *width) else { return line.to_owned() };
    // On a terminal that is hardly wider than the indent there would be a word a line.
    let indent = if width >= indent + 20 { indent } else { 2 };
    let mut wrapped = String::with_capacity(line.len() + 64);
    let mut column = 0;
    // The spaces between words stay as they are, but at a break.
    for word in line.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if column + length > width && column > indent {
            wrapped.truncate(wrapped.trim_end().len());
            wrapped.push('\n');
            wrapped.push_str(&" ".repeat(indent));
            column = indent;
            if word.trim().is_empty() {
                continue;
            }
        }
        wrapped.push_str(word);
        column += word.chars().count();
    }
    wrapped.truncate(wrapped.trim_end().len());
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_broken_between_words_and_no_word_is_lost() {
        let line = "confirmed     0/16B3748, 12 KiB behind; 48 KiB of WAL retained";
        assert_eq!(wrap(line, 14, None), line);
        assert_eq!(wrap(line, 14, Some(80)), line);
        let wrapped = wrap(line, 14, Some(40));
        assert_eq!(wrapped, "confirmed     0/16B3748, 12 KiB behind;\n              48 KiB of WAL retained");
        for width in 1..70 {
            let wrapped = wrap(line, 14, Some(width));
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&wrapped), words(line), "{width}");
            assert!(width < 20 || wrapped.lines().all(|line| line.chars().count() <= width), "{width}: {wrapped}");
        }
    }
}
