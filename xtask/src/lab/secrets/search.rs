//! Secrets, and whether one is in a text.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Result, bail};

/// What private keys are called in the files that hold them.
const PRIVATE: &str = "privkey:";
const KEY_DIGITS: usize = 64;

/// Texts by which a secret would be recognised, and whose it is.
#[derive(Default)]
pub struct Secrets(BTreeMap<String, String>);

impl Secrets {
    pub fn text(&mut self, whose: &str, text: &str) {
        self.0.insert(text.to_owned(), whose.to_owned());
    }

    /// A key of 32 bytes: in hex and in both alphabets of base64 (whose last digit depends on what follows).
    fn key(&mut self, whose: &str, hex: &str) -> Result<()> {
        let bytes = (0..KEY_DIGITS / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16));
        let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
        self.text(whose, &hex.to_lowercase());
        self.text(whose, &hex.to_uppercase());
        for alphabet in [b"+/", b"-_"] {
            let mut text = base64(&bytes, *alphabet);
            text.truncate(42);
            self.text(whose, &text);
        }
        let listed: Vec<String> = bytes.iter().take(8).map(u8::to_string).collect();
        self.text(whose, &listed.join(", "));
        Ok(())
    }

    /// Every private key of a file, whatever else it holds. Returns how many there were.
    fn of_file(&mut self, file: &Path) -> Result<usize> {
        let bytes = fs::read(file)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut found = 0;
        for (at, _) in text.match_indices(PRIVATE) {
            let hex: String = text[at + PRIVATE.len()..]
                .chars()
                .take_while(char::is_ascii_hexdigit)
                .take(KEY_DIGITS)
                .collect();
            if hex.len() == KEY_DIGITS {
                self.key(&file.display().to_string(), &hex)?;
                found += 1;
            }
        }
        if let Some((_, pem)) = text.split_once("PRIVATE KEY-----") {
            for line in pem
                .lines()
                .skip(1)
                .take_while(|line| !line.starts_with('-'))
            {
                // The last one may be too short to be told from chance.
                if line.len() >= 32 {
                    self.text(&file.display().to_string(), line);
                    found += 1;
                }
            }
        }
        Ok(found)
    }

    pub fn of_folder(&mut self, folder: &Path) -> Result<usize> {
        let mut found = 0;
        for path in fs::read_dir(folder)?.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                found += self.of_folder(&path)?;
            } else if path.is_file() {
                found += self.of_file(&path)?;
            }
        }
        Ok(found)
    }

    /// In how many forms they are looked for.
    pub fn forms(&self) -> usize {
        self.0.len()
    }

    /// # Errors
    /// One is in there.
    pub fn search(&self, place: &str, text: &str) -> Result<()> {
        for (secret, whose) in &self.0 {
            if let Some(at) = text.find(secret) {
                let line = text[..at].lines().count();
                bail!(
                    "a secret of {whose} ({} bytes) is in {place}, line {line}",
                    secret.len()
                );
            }
        }
        Ok(())
    }
}

fn base64(bytes: &[u8], last_two: [u8; 2]) -> String {
    let digit = |value: u32| match value & 63 {
        value @ 0..26 => (b'A' + value as u8) as char,
        value @ 26..52 => (b'a' + value as u8 - 26) as char,
        value @ 52..62 => (b'0' + value as u8 - 52) as char,
        value => last_two[value as usize - 62] as char,
    };
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let word = chunk
                .iter()
                .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            [18, 12, 6, 0].map(|shift| digit(word >> shift))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_each_form_and_a_certificates_by_its_lines() {
        assert_eq!(base64(b"Man", *b"+/"), "TWFu");
        let hex = "00112233445566778899aabbccddeefffb8fb8fb00112233445566778899aabb";
        let mut secrets = Secrets::default();
        secrets.key("test", hex).expect("hexadecimal");
        for place in [
            "key=00112233445566778899aabbccddeefffb8fb8fb00112233445566778899aabb\n",
            "00112233445566778899AABBCCDDEEFFFB8FB8FB00112233445566778899AABB",
            "ABEiM0RVZneImaq7zN3u//uPuPsAESIzRFVmd4iZqrs=",
            "ABEiM0RVZneImaq7zN3u__uPuPsAESIzRFVmd4iZqrs",
            "[0, 17, 34, 51, 68, 85, 102, 119, 136, 153]",
        ] {
            assert!(secrets.search("there", place).is_err(), "{place}");
        }
        assert!(secrets.search("there", "0011223344").is_ok());
    }
}
