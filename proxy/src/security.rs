//! How a connection is secured: the class that metrics and the access log show.

/// How a connection is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Security {
    /// There is no connection, or it was refused.
    #[default]
    None,
    /// Encrypted, and both sides have proven who they are.
    Mtls,
    /// TLS with clients outside of the mesh, by a certificate of this proxy.
    Tls,
    /// Not encrypted by the mesh.
    Plaintext(Why),
    /// To a destination that is not in the mesh, passed on as it is.
    Passthrough,
}

/// Why a connection is not encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// This proxy has no identity.
    NoIdentity,
    /// The client proved no identity, and the mode is Permissive.
    Permissive,
    /// The client proved no identity, and a policy names its address as one that may use the port in plaintext.
    Declared,
    /// The endpoint's pod excludes the port from its proxy.
    Excluded,
    /// The endpoint has no identity.
    OutsideMesh,
    /// The endpoint is this pod itself.
    SamePod,
}

// === impl Security ===

impl Security {
    /// The class.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Mtls => "mtls",
            Self::Tls => "tls",
            Self::Plaintext(_) => "plaintext",
            Self::Passthrough => "passthrough",
        }
    }

    /// Why it is plaintext; empty if it is not.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::Plaintext(Why::NoIdentity) => "no-identity",
            Self::Plaintext(Why::Permissive) => "permissive",
            Self::Plaintext(Why::Declared) => "declared",
            Self::Plaintext(Why::Excluded) => "excluded",
            Self::Plaintext(Why::OutsideMesh) => "outside-mesh",
            Self::Plaintext(Why::SamePod) => "same-pod",
            Self::None | Self::Mtls | Self::Tls | Self::Passthrough => "",
        }
    }
}
