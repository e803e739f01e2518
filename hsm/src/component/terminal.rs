//! The terminal of a custodian: a component is typed without echo, and shown on the alternate screen, which has no scrollback.
//! Pipes serve rehearsals and scripts. A participant also types the user PIN of a token here.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsFd,
};

use base16ct::{mixed, upper};
use rustix::termios::{
    LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios, tcflush, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

use super::ComponentError;
use hsm_protocol::Kcv;

use crate::{clear::ClearBytes, config::SlotName};

/// The most characters of a typed line: 64 digits and spaces between them.
const LINE_CHARACTERS_MAX: usize = 192;
/// Switches to the alternate screen, which has no scrollback, and clears it (xterm, DECSET 1049).
const ALTERNATE_SCREEN: &str = "\x1b[?1049h\x1b[2J\x1b[H";
/// Clears the alternate screen and switches back.
const MAIN_SCREEN: &str = "\x1b[2J\x1b[H\x1b[?1049l";

/// The terminal or pipes on which custodians type and read components.
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
    /// Opens the terminal of this process, `/dev/tty`.
    ///
    /// # Errors
    /// [`ComponentError::Io`] where the process has no terminal.
    pub fn terminal() -> Result<Self, ComponentError> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        let as_it_was = tcgetattr(&terminal).map_err(io::Error::from)?;
        Ok(Self { input: terminal.try_clone()?, output: terminal, kind: Kind::Terminal(Box::new(as_it_was)) })
    }

    /// Uses standard input and output. Input: for each component a line with its digits and a line with its KCV. Output: one
    /// line for each component.
    ///
    /// # Errors
    /// [`ComponentError::Io`] where standard input or output is closed.
    pub fn pipes() -> Result<Self, ComponentError> {
        // Not `io::stdin`, which reads ahead into a buffer that is not wiped.
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
        let (mut digits, mut count) = (ClearBytes::zeroed(wanted), 0);
        for digit in line.bytes().iter().take(typed).filter(|byte| **byte != b' ') {
            if let Some(place) = digits.bytes_mut().get_mut(count) {
                *place = *digit;
            }
            count += 1;
        }
        match mixed::decode(digits.bytes(), component.bytes_mut()) {
            Ok(_) if count == wanted => Ok(()),
            _ => Err(ComponentError::Digits { wanted }),
        }
    }

    /// Asks for a user PIN; `None` for an empty line or one that is not UTF-8.
    pub(crate) fn ask_user_pin(&mut self, token: &SlotName) -> Result<Option<Zeroizing<String>>, ComponentError> {
        let mut line = ClearBytes::zeroed(LINE_CHARACTERS_MAX);
        let typed = self.ask(&format!("user PIN of the token with the {token} (it is not shown): "), &mut line)?;
        let text = line.bytes().get(..typed).and_then(|typed| str::from_utf8(typed).ok());
        Ok(text.filter(|text| !text.is_empty()).map(|text| Zeroizing::new(text.to_owned())))
    }

    pub(super) fn ask_kcv(&mut self, custodian: &str, number: usize) -> Result<Vec<u8>, ComponentError> {
        let mut line = ClearBytes::zeroed(LINE_CHARACTERS_MAX);
        let typed = self.ask(&format!("{custodian}, check value of component {number}: "), &mut line)?;
        let digits = line.bytes().get(..typed).unwrap_or_default();
        mixed::decode_vec(digits).ok().filter(|kcv| (3..=5).contains(&kcv.len())).ok_or(ComponentError::Kcv)
    }

    pub(super) fn show_component(
        &mut self,
        custodian: &str,
        number: usize,
        component: &ClearBytes,
        kcv: Kcv,
    ) -> Result<(), ComponentError> {
        let Kind::Terminal(_) = self.kind else {
            self.output.write_all(format!("{custodian} ").as_bytes())?;
            self.write_digits(component, 0)?;
            return Ok(writeln!(self.output, " {kcv}")?);
        };
        self.wait_for_enter(&format!("\nOnly {custodian} may look at the screen now. {custodian}, press Enter: "))?;
        self.output.write_all(ALTERNATE_SCREEN.as_bytes())?;
        self.output
            .write_all(format!("{custodian}, this is component {number}. Write it down.\r\n\r\n    ").as_bytes())?;
        let shown = self.write_digits(component, 4);
        let after = format!("\r\n\r\n    check value  {kcv}\r\n\r\nPress Enter when it is written down: ");
        let waited = shown.and_then(|()| self.wait_for_enter(&after));
        // After an error too, so that the component does not stay on the screen.
        self.output.write_all(MAIN_SCREEN.as_bytes())?;
        waited
    }

    /// Writes byte by byte: no buffer holds the digits of a whole component.
    fn write_digits(&mut self, component: &ClearBytes, group: usize) -> Result<(), ComponentError> {
        let mut pair = ClearBytes::zeroed(2);
        for (at, byte) in component.bytes().iter().enumerate() {
            let apart = group > 0 && at > 0 && (2 * at).is_multiple_of(group);
            if apart {
                self.output.write_all(b" ")?;
            }
            upper::encode(std::slice::from_ref(byte), pair.bytes_mut()).map_err(io::Error::other)?;
            self.output.write_all(pair.bytes())?;
        }
        Ok(())
    }

    fn wait_for_enter(&mut self, question: &str) -> Result<(), ComponentError> {
        let mut line = ClearBytes::zeroed(LINE_CHARACTERS_MAX);
        self.ask(question, &mut line).map(drop)
    }

    /// Reads a line without its end, and returns its length. Echo is off before the question appears, so that even a quick
    /// answer is not shown. Ctrl-C and Ctrl-D arrive as characters, not as signals, so the terminal's settings are always
    /// restored. On pipes no question is written.
    fn ask(&mut self, question: &str, line: &mut ClearBytes) -> Result<usize, ComponentError> {
        let Kind::Terminal(as_it_was) = &self.kind else { return read_line(&mut self.input, line, Source::Pipe) };
        let mut silent = (**as_it_was).clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&self.input, OptionalActions::Drain, &silent).map_err(io::Error::from)?;
        let asked = self.output.write_all(question.as_bytes()).map_err(ComponentError::from);
        let read = asked.and_then(|()| read_line(&mut self.input, line, Source::Keyboard));
        // After an error, typed-ahead characters are discarded before the terminal echoes again.
        let then = if read.is_ok() { OptionalActions::Drain } else { OptionalActions::Flush };
        tcsetattr(&self.input, then, as_it_was).map_err(io::Error::from)?;
        self.output.write_all(b"\r\n")?;
        read
    }
}

impl Drop for ComponentTerminal {
    /// Discards typed-ahead characters: the shell would read, print and store a component.
    fn drop(&mut self) {
        if let Kind::Terminal(_) = self.kind {
            let _ = tcflush(&self.input, QueueSelector::IFlush);
        }
    }
}

/// The source of a line. Only a keyboard sends control characters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Pipe,
    Keyboard,
}

/// Reads byte by byte into `line`: no other buffer holds the input.
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
            // Backspace and delete; Ctrl-C and Ctrl-D.
            [0x08 | 0x7F] if from == Source::Keyboard => length = length.saturating_sub(1),
            [0x03 | 0x04] if from == Source::Keyboard => return Err(ComponentError::Ended),
            _ => length += 1,
        }
    }
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

        // The screen's pipe is full, so the question can't be written yet.
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
                "echo is still on while the question waits for the screen"
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
