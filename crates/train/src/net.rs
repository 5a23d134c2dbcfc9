//! HTTP clients: plain always, over TLS where this build has it (feature `tls`, on by default).
//! TLS is rustls with primitives in Rust and assembly, so that no C is compiled; it trusts the certificates that the
//! system trusts, or those in the file that `SSL_CERT_FILE` names.
//! Cost: reading the system's certificates once.

use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::typestate::AgentScope;

/// Why a URL cannot be asked, and what to do; nothing if it can.
pub fn unreachable(url: &str) -> Option<(String, &'static str)> {
    if url.starts_with("http://") {
        return None;
    }
    if !url.starts_with("https://") {
        return Some((format!("the url {url:?} begins with neither http:// nor https://"), "write the whole address"));
    }
    tls::missing()
        .map(|why| (format!("{url} asks for TLS, which {why}"), "put a local proxy that speaks TLS in between"))
}

/// A client with these settings.
pub fn agent(settings: ConfigBuilder<AgentScope>) -> Agent {
    Agent::new_with_config(tls::with(settings).build())
}

#[cfg(all(feature = "tls", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tls {
    use std::path::PathBuf;
    use std::sync::{Arc, OnceLock};

    use ureq::config::ConfigBuilder;
    use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
    use ureq::typestate::AgentScope;

    /// Where systems keep the certificates that they trust.
    const BUNDLES: [&str; 5] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
        "/usr/local/share/certs/ca-root-nss.crt",
    ];

    fn roots() -> &'static Arc<Vec<Certificate<'static>>> {
        static ROOTS: OnceLock<Arc<Vec<Certificate<'static>>>> = OnceLock::new();
        ROOTS.get_or_init(|| {
            let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
            let paths = named.map_or_else(|| BUNDLES.iter().map(PathBuf::from).collect(), |path| vec![path]);
            let bytes = paths.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
            let certificate = |item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            };
            Arc::new(parse_pem(&bytes).filter_map(certificate).collect())
        })
    }

    /// What the primitives need of the processor; without it they would panic.
    fn processor_fits() -> bool {
        #[cfg(target_arch = "x86_64")]
        return is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("adx")
            && is_x86_feature_detected!("avx2");
        #[cfg(target_arch = "aarch64")]
        return std::arch::is_aarch64_feature_detected!("aes")
            && std::arch::is_aarch64_feature_detected!("pmull")
            && std::arch::is_aarch64_feature_detected!("sha2");
    }

    pub fn missing() -> Option<&'static str> {
        if !processor_fits() {
            Some("this build cannot do on this processor")
        } else if roots().is_empty() {
            Some("needs the certificates that the system trusts, and none were found (SSL_CERT_FILE names a file)")
        } else {
            None
        }
    }

    pub fn with(settings: ConfigBuilder<AgentScope>) -> ConfigBuilder<AgentScope> {
        if missing().is_some() {
            return settings;
        }
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(roots().clone()))
            .unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()));
        settings.tls_config(tls.build())
    }
}

#[cfg(not(all(feature = "tls", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod tls {
    use ureq::config::ConfigBuilder;
    use ureq::typestate::AgentScope;

    pub fn missing() -> Option<&'static str> {
        Some("this build does not have (feature tls)")
    }

    pub fn with(settings: ConfigBuilder<AgentScope>) -> ConfigBuilder<AgentScope> {
        settings
    }
}
