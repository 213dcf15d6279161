//! Bytes that must not leak.

use zeroize::Zeroizing;

/// Bytes that are zeroed when dropped and that cannot be printed, cloned, compared or serialized by
/// accident. The one way to the content is [`Secret::expose`], which is easy to find in a review.
///
/// ```compile_fail,E0277
/// println!("{:?}", mayfly_wire::Secret::from(b"x".to_vec()));
/// ```
/// ```compile_fail,E0277
/// println!("{}", mayfly_wire::Secret::from(b"x".to_vec()));
/// ```
/// ```compile_fail,E0599
/// let _ = mayfly_wire::Secret::from(b"x".to_vec()).clone();
/// ```
/// ```compile_fail,E0277
/// let _ = serde_json::to_string(&mayfly_wire::Secret::from(b"x".to_vec()));
/// ```
/// ```compile_fail,E0369
/// let _ = mayfly_wire::Secret::from(vec![]) == mayfly_wire::Secret::from(vec![]);
/// ```
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The bytes. Whoever calls this answers for every copy made of them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Takes the vector over without copying it, so no second copy is left behind.
impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

/// Takes the string over without copying it.
impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::from(text.into_bytes())
    }
}
