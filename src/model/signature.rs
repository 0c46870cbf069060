//! Who vouches for a bundle: a detached Ed25519 signature over its canonical document.
//!
//! It proves that whoever has the key captured exactly this: the engine key, and the name, mode, time and digest of every file. It
//! does not prove that the files are harmless: a replica that has been taken over and may publish signs harm.
//!
//! What is signed is a domain line and the document, so that a signature for one purpose is none for another. A signature inside
//! the document was turned down: then the document would not have one text.

use std::fmt;
use std::str::FromStr;

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// The public half of a key: who signs. Text form: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signer([u8; 32]);

/// A signature and who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Who.
    pub signer: Signer,
    bytes: [u8; 64],
}

/// A key that signs. It prints nothing of itself but who it is.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    signer: Signer,
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u32,
    signer: Signer,
    ed25519: String,
}

/// Why a signature or a key was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not JSON of the documented shape.
    #[error("signature is not of the documented shape: {0}")]
    Shape(String),
    /// It is not over these bytes, or not by that signer.
    #[error("the signature of {0} does not fit: the document was changed, or it is somebody else's signature")]
    Wrong(Signer),
    /// Not 64 hex digits.
    #[error("`{0}` is not a signer: 64 lower-case hex digits, as `preheat engine keygen` prints them")]
    Signer(String),
    /// Not a private key.
    #[error("it is not an Ed25519 private key in PEM (PKCS #8): make one with `preheat engine keygen FILE`")]
    Key,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Largest signature document.
pub const SIGNATURE_LIMIT: usize = 1024;

/// What stands before the document in the signed text.
const DOMAIN: &[u8] = b"preheat bundle signature 1\n";

const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

// === impl Signer ===

impl TryFrom<String> for Signer {
    type Error = SignatureError;

    fn try_from(text: String) -> Result<Self, SignatureError> {
        text.parse()
    }
}

impl FromStr for Signer {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let wrong = || SignatureError::Signer(text.chars().take(80).collect());
        unhex::<32>(text).map(Self).ok_or_else(wrong)
    }
}

impl From<Signer> for String {
    fn from(signer: Signer) -> Self {
        signer.to_string()
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({self})")
    }
}

// === impl Signature ===

impl Signature {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// `Shape`
    pub fn parse(json: &[u8]) -> Result<Self, SignatureError> {
        let shape = |detail: String| SignatureError::Shape(detail);
        if json.len() > SIGNATURE_LIMIT {
            return Err(shape(format!("{} bytes, the limit is {SIGNATURE_LIMIT}", json.len())));
        }
        let document: Document = serde_json::from_slice(json).map_err(|error| shape(error.to_string()))?;
        if (document.format.as_str(), document.version) != ("preheat-signature", 1) {
            return Err(shape("its format is not `preheat-signature`, version 1".to_owned()));
        }
        let bytes =
            unhex::<64>(&document.ed25519).ok_or_else(|| shape("`ed25519` is not 128 hex digits".to_owned()))?;
        Ok(Self { signer: document.signer, bytes })
    }

    /// The JSON form.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let document = Document {
            format: "preheat-signature".to_owned(),
            version: 1,
            signer: self.signer,
            ed25519: hex(&self.bytes),
        };
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// Whether it is its signer's signature of `document`.
    ///
    /// # Errors
    /// `Wrong`
    pub fn verify(&self, document: &[u8]) -> Result<(), SignatureError> {
        let key = UnparsedPublicKey::new(&ED25519, &self.signer.0);
        key.verify(&signed_text(document), &self.bytes).map_err(|_| SignatureError::Wrong(self.signer))
    }
}

// === impl SigningKey ===

impl SigningKey {
    /// A new key, and its text: PKCS #8 in PEM, as other tools write and read it.
    ///
    /// # Errors
    /// `Random`
    pub fn generate() -> Result<(Self, String), SignatureError> {
        use base64::Engine;
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| SignatureError::Random)?;
        let encoded = base64::engine::general_purpose::STANDARD.encode(pkcs8.as_ref());
        let lines: Vec<&str> =
            encoded.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        let text = format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", lines.join("\n"));
        Ok((Self::parse(&text)?, text))
    }

    /// Reads the text of a key.
    ///
    /// # Errors
    /// `Key`
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        use base64::Engine;
        let inner = text.split_once(PEM_BEGIN).and_then(|(_, rest)| rest.split_once(PEM_END));
        let (encoded, _) = inner.ok_or(SignatureError::Key)?;
        let encoded: String = encoded.split_whitespace().collect();
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes()).map_err(|_| SignatureError::Key)?;
        // Other tools leave the public half out of the file.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&bytes).map_err(|_| SignatureError::Key)?;
        let signer = pair.public_key().as_ref().try_into().map(Signer).map_err(|_| SignatureError::Key)?;
        Ok(Self { pair, signer })
    }

    /// Who it is.
    #[must_use]
    pub fn signer(&self) -> Signer {
        self.signer
    }

    /// Signs a document.
    #[must_use]
    pub fn sign(&self, document: &[u8]) -> Signature {
        let made = self.pair.sign(&signed_text(document));
        let mut bytes = [0; 64];
        bytes.copy_from_slice(made.as_ref());
        Signature { signer: self.signer, bytes }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.signer)
    }
}

fn signed_text(document: &[u8]) -> Vec<u8> {
    [DOMAIN, document].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_fits_its_document_and_its_signer_alone() {
        let (key, text) = SigningKey::generate().unwrap();
        let signature = key.sign(b"document");
        signature.verify(b"document").unwrap();
        assert_eq!(signature.verify(b"documenT"), Err(SignatureError::Wrong(key.signer())));
        let (other, _) = SigningKey::generate().unwrap();
        let claimed = Signature { signer: other.signer(), bytes: signature.bytes };
        assert!(claimed.verify(b"document").is_err());
        let again = SigningKey::parse(&text).unwrap();
        assert_eq!((again.signer(), again.sign(b"document")), (key.signer(), signature.clone()));
        assert_eq!(Signature::parse(&signature.to_json()).unwrap(), signature);
        for bit in 0..512 {
            let mut bent = signature.clone();
            bent.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(bent.verify(b"document").is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_key_of_another_tool_is_read() {
        // RFC 8410, section 10.3: the private key without its public half, as `openssl genpkey` writes it.
        let text = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let key = SigningKey::parse(text).unwrap();
        assert_eq!(key.signer().to_string(), "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1");
        assert!(!format!("{key:?}").contains("1OnK"));
        for wrong in ["", "MC4CAQAw", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"] {
            assert_eq!(SigningKey::parse(wrong).err(), Some(SignatureError::Key));
        }
    }

    #[test]
    fn a_signature_of_another_shape_is_refused() {
        let (key, _) = SigningKey::generate().unwrap();
        let json = String::from_utf8(key.sign(b"x").to_json()).unwrap();
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("preheat-signature", "cosign"),
            ("\"signer\":\"", "\"signer\":\"A"),
            ("\"ed25519\":\"", "\"ed25519\":\"0"),
            ("{", "{\"more\":1,"),
        ] {
            let wrong = json.replace(from, to);
            assert_ne!(wrong, json);
            assert!(matches!(Signature::parse(wrong.as_bytes()), Err(SignatureError::Shape(_))), "{wrong}");
        }
        assert!(Signature::parse(&[b' '; SIGNATURE_LIMIT + 1]).is_err());
    }
}
