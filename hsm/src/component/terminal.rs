//! Where a custodian sits: a terminal, on which a component is typed without echo and shown on a screen of its own that
//! leaves nothing behind; or pipes, for rehearsals and scripts. The user PIN of a person's token is typed there too.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsFd,
};

use rustix::termios::{
    LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios, tcflush, tcgetattr, tcsetattr,
};

use zeroize::Zeroizing;

use super::ComponentError;
use crate::{check_value::Kcv, clear::ClearBytes, config::SlotName};

/// The most characters of a typed line: 64 digits, and spaces between them.
const LINE_CHARACTERS_MAX: usize = 192;
/// The screen that has no scrollback, cleared; and back from it, cleared again (xterm, DECSET 1049).
const OWN_SCREEN: &str = "\x1b[?1049h\x1b[2J\x1b[H";
const BACK: &str = "\x1b[2J\x1b[H\x1b[?1049l";

/// Where components are typed and shown.
pub struct ComponentTerminal {
    input: File,
    output: File,
    kind: Kind,
}

enum Kind {
    Terminal(Box<Termios>),
    Pipes,
}

impl ComponentTerminal {
    /// This process's terminal.
    pub fn terminal() -> Result<Self, ComponentError> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        let as_it_was = tcgetattr(&terminal).map_err(io::Error::from)?;
        Ok(Self { input: terminal.try_clone()?, output: terminal, kind: Kind::Terminal(Box::new(as_it_was)) })
    }

    /// Standard input and output: a component a line in, with its check value on the next; a line a component out.
    pub fn pipes() -> Result<Self, ComponentError> {
        // Not `io::stdin`, which reads ahead into a buffer of its own.
        let input = io::stdin().as_fd().try_clone_to_owned()?.into();
        Ok(Self { input, output: io::stdout().as_fd().try_clone_to_owned()?.into(), kind: Kind::Pipes })
    }

    pub(super) fn ask_component(
        &mut self,
        custodian: &str,
        number: usize,
        component: &mut ClearBytes,
    ) -> Result<(), ComponentError> {
        let wanted = 2 * component.bytes().len();
        let mut line = ClearBytes::zeroed(LINE_CHARACTERS_MAX);
        let typed = self.ask(&format!("{custodian}, component {number} (it is not shown): "), &mut line)?;
        let digits = line.bytes().get(..typed).unwrap_or_default().iter().filter(|byte| **byte != b' ');
        let mut count = 0;
        for digit in digits {
            let value = nibble(*digit).ok_or(ComponentError::Digits { wanted })?;
            if let Some(place) = component.bytes_mut().get_mut(count / 2) {
                *place = (*place << 4) | value;
            }
            count += 1;
        }
        if count == wanted { Ok(()) } else { Err(ComponentError::Digits { wanted }) }
    }

    /// A user PIN; none where nothing was typed, or it is no text.
    pub(crate) fn ask_user_pin(&mut self, token: &SlotName) -> Result<Option<Zeroizing<String>>, ComponentError> {
        let mut line = ClearBytes::zeroed(LINE_CHARACTERS_MAX);
        let typed = self.ask(&format!("user PIN of the token with the {token} (it is not shown): "), &mut line)?;
        let text = line.bytes().get(..typed).and_then(|typed| str::from_utf8(typed).ok());
        Ok(text.filter(|text| !text.is_empty()).map(|text| Zeroizing::new(text.to_owned())))
    }

    pub(super) fn ask_check_value(&mut self, custodian: &str, number: usize) -> Result<Vec<u8>, ComponentError> {
        let mut line = ClearBytes::zeroed(LINE_CHARACTERS_MAX);
        let typed = self.ask(&format!("{custodian}, check value of component {number}: "), &mut line)?;
        let digits = line.bytes().get(..typed).unwrap_or_default();
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes = pairs.iter().map(|[high, low]| Some((nibble(*high)? << 4) | nibble(*low)?));
        match (rest, bytes.collect::<Option<Vec<_>>>()) {
            ([], Some(bytes)) if (3..=5).contains(&bytes.len()) => Ok(bytes),
            _ => Err(ComponentError::Kcv),
        }
    }

    pub(super) fn show_component(
        &mut self,
        custodian: &str,
        number: usize,
        component: &ClearBytes,
        check_value: Kcv,
    ) -> Result<(), ComponentError> {
        let Kind::Terminal(_) = self.kind else {
            self.output.write_all(format!("{custodian} ").as_bytes())?;
            self.write_digits(component, 0)?;
            return Ok(writeln!(self.output, " {check_value}")?);
        };
        self.wait_for_enter(&format!("\nOnly {custodian} may look at the screen now. {custodian}, press Enter: "))?;
        self.output.write_all(OWN_SCREEN.as_bytes())?;
        self.output
            .write_all(format!("{custodian}, this is component {number}. Write it down.\r\n\r\n    ").as_bytes())?;
        let shown = self.write_digits(component, 4);
        let after = format!("\r\n\r\n    check value  {check_value}\r\n\r\nPress Enter when it is written down: ");
        let waited = shown.and_then(|()| self.wait_for_enter(&after));
        // Whatever happened, the screen is left as it was.
        self.output.write_all(BACK.as_bytes())?;
        waited
    }

    /// Digit by digit: no text of a component is ever put together.
    fn write_digits(&mut self, component: &ClearBytes, group: usize) -> Result<(), ComponentError> {
        let mut pair = ClearBytes::zeroed(3);
        for (at, byte) in component.bytes().iter().enumerate() {
            let apart = group > 0 && at > 0 && (2 * at).is_multiple_of(group);
            let [space, high, low] = [b' ', digit(byte >> 4), digit(byte & 0xF)];
            pair.bytes_mut().copy_from_slice(&[space, high, low]);
            let from = usize::from(!apart);
            self.output.write_all(pair.bytes().get(from..).unwrap_or_default())?;
        }
        Ok(())
    }

    fn wait_for_enter(&mut self, question: &str) -> Result<(), ComponentError> {
        let mut line = ClearBytes::zeroed(LINE_CHARACTERS_MAX);
        self.ask(question, &mut line).map(drop)
    }

    /// A line, without its end; how many characters it has. A terminal is silent before the question stands on it, so
    /// that not even a quick answer is seen; Ctrl-C and Ctrl-D end it as characters, not as signals: the terminal is
    /// always left as it was. Pipes are asked nothing.
    fn ask(&mut self, question: &str, line: &mut ClearBytes) -> Result<usize, ComponentError> {
        let Kind::Terminal(as_it_was) = &self.kind else { return read_line(&mut self.input, line, Source::Pipe) };
        let mut silent = (**as_it_was).clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&self.input, OptionalActions::Drain, &silent).map_err(io::Error::from)?;
        let asked = self.output.write_all(question.as_bytes()).map_err(ComponentError::from);
        let read = asked.and_then(|()| read_line(&mut self.input, line, Source::Keyboard));
        // After a mistake what was typed ahead is discarded before the terminal echoes again.
        let then = if read.is_ok() { OptionalActions::Drain } else { OptionalActions::Flush };
        tcsetattr(&self.input, then, as_it_was).map_err(io::Error::from)?;
        self.output.write_all(b"\r\n")?;
        read
    }
}

impl Drop for ComponentTerminal {
    /// Discards what was typed ahead and never asked for: a component, which a shell would read next, print and keep.
    fn drop(&mut self) {
        if let Kind::Terminal(_) = self.kind {
            let _ = tcflush(&self.input, QueueSelector::IFlush);
        }
    }
}

/// Where a line comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Pipe,
    Keyboard,
}

/// Byte by byte, into this place alone: no buffer keeps what was read ahead.
fn read_line(input: &mut File, line: &mut ClearBytes, from: Source) -> Result<usize, ComponentError> {
    let mut length = 0;
    loop {
        let Some(place) = line.bytes_mut().get_mut(length..=length) else {
            return Err(ComponentError::Digits { wanted: LINE_CHARACTERS_MAX });
        };
        if input.read(place)? == 0 {
            return Err(ComponentError::Ended);
        }
        match place {
            [b'\n'] => return Ok(length),
            [b'\r'] if from == Source::Keyboard => return Ok(length),
            [b'\r'] => {}
            // Backspace, and what ends it.
            [0x08 | 0x7F] if from == Source::Keyboard => length = length.saturating_sub(1),
            [0x03 | 0x04] if from == Source::Keyboard => return Err(ComponentError::Ended),
            _ => length += 1,
        }
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 }
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use rustix::{
        pipe::{PipeFlags, pipe_with},
        pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    };

    use super::*;

    #[test]
    fn echo_is_off_before_the_question_appears() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let keyboard = openpt(flags).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let terminal = File::from(ioctl_tiocgptpeer(&keyboard, flags).unwrap());
        let as_it_was = tcgetattr(&terminal).unwrap();
        assert!(as_it_was.local_modes.contains(LocalModes::ECHO));

        // Its screen is full: the question can't be read yet.
        let (seen, screen) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        while rustix::io::write(&screen, &[b'.'; 1024]).is_ok() {}
        rustix::fs::fcntl_setfl(&screen, rustix::fs::OFlags::empty()).unwrap();
        rustix::fs::fcntl_setfl(&seen, rustix::fs::OFlags::empty()).unwrap();
        let kind = Kind::Terminal(Box::new(as_it_was));
        let mut component_terminal =
            ComponentTerminal { input: terminal.try_clone().unwrap(), output: screen.into(), kind };
        let asking = thread::spawn(move || {
            let mut line = ClearBytes::zeroed(LINE_CHARACTERS_MAX);
            let typed = component_terminal.ask("user PIN?", &mut line).unwrap();
            line.bytes()[..typed] == *b"1357"
        });
        let since = Instant::now();
        while tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO) {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "it waits for its screen with what is typed still shown"
            );
            thread::sleep(Duration::from_millis(1));
        }

        let reading = thread::spawn(move || {
            let mut text = Vec::new();
            File::from(seen).read_to_end(&mut text).unwrap();
            text
        });
        rustix::io::write(&keyboard, b"1357\r").unwrap();
        assert!(asking.join().unwrap());
        assert!(reading.join().unwrap().ends_with(b".user PIN?\r\n"));
        assert!(tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO));
    }
}
