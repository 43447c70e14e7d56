//! Tickets of sessions on listeners that ask for certificates.
//!
//! A session that is resumed stands for a proof that was made in an earlier handshake: the client shows no certificate,
//! and rustls asks nobody about the one in the ticket. A ticket would so outlive it for ever, since each resumption
//! brings another ticket. So a ticket of ours begins with when that proof was made and how long the certificates are
//! valid. It is taken for an hour after the proof at most, however often the session was resumed since, and not after the
//! first certificate of the chain has expired. It needs to say nothing of the authorities and revocation lists: its key
//! belongs to one [`super::trust::Trust`] and goes with it. A ticket that is not taken costs a full handshake, in which
//! the client may show another certificate.
//!
//! rustls has one place for tickets and one for verification, and neither knows of which handshake it is asked. As a
//! handshake is driven by one task, what the two have to tell each other is in a variable of that task.

use std::cell::Cell;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::GetRandomFailed;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ProducesTickets;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::ticketer::TicketRotator;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::certificate::valid_until;

/// Seconds for which a proof may be stood for by tickets; also how long a key is used for new ones. It is kept for as
/// long again.
const MAX_AGE: u32 = 60 * 60;

/// What is known of the session of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Session {
    /// When the client has proved who it is, in seconds since 1970.
    proved: u64,
    /// Until when the certificates are valid that it did so by; for ever where it had none.
    valid_until: u64,
}

const LENGTH: usize = 16;

impl Session {
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.proved.to_be_bytes());
        out.extend_from_slice(&self.valid_until.to_be_bytes());
    }

    fn read(bytes: [u8; LENGTH]) -> Self {
        let [proved, valid_until] = [u128::from_be_bytes(bytes) >> 64, u128::from_be_bytes(bytes)].map(|n| n as u64);
        Self { proved, valid_until }
    }

    fn is_good(self, now: u64) -> bool {
        let age = now.checked_sub(self.proved);
        age.is_some_and(|age| age < u64::from(MAX_AGE)) && now <= self.valid_until
    }
}

tokio::task_local! {
    static HANDSHAKE: Cell<Option<Session>>;
}

/// A handshake, in which [`Tickets`] and [`Noting`] work together.
pub async fn handshake<F: Future>(handshake: F) -> F::Output {
    HANDSHAKE.scope(Cell::new(None), handshake).await
}

/// Seals and opens tickets.
#[derive(Debug)]
pub struct Tickets {
    keys: TicketRotator,
}

impl Tickets {
    pub fn new() -> Result<Self, Error> {
        let key = || Ok(Box::new(Key(Ticketer::new().map_err(|_| GetRandomFailed)?)) as Box<dyn ProducesTickets>);
        Ok(Self { keys: TicketRotator::new(MAX_AGE, key)? })
    }

    fn seal(&self, session: Session, plain: &[u8]) -> Option<Vec<u8>> {
        let mut all = Vec::with_capacity(LENGTH + plain.len());
        session.write(&mut all);
        all.extend_from_slice(plain);
        self.keys.encrypt(&all)
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<(Session, Vec<u8>)> {
        let all = self.keys.decrypt(ticket)?;
        let (session, plain) = all.split_first_chunk::<LENGTH>()?;
        let session = Session::read(*session);
        session.is_good(now).then(|| (session, plain.to_vec()))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        MAX_AGE
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let anonymous = Session { proved: UnixTime::now().as_secs(), valid_until: u64::MAX };
        let session = HANDSHAKE.try_with(|session| session.get().unwrap_or(anonymous)).ok()?;
        self.seal(session, plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (session, plain) = self.open(cipher, UnixTime::now().as_secs())?;
        // Where rustls does not resume it for a reason of its own, the client will show a certificate, or has none.
        HANDSHAKE.try_with(|resumed| resumed.set(Some(session))).ok()?;
        Some(plain)
    }
}

/// One key of a [`TicketRotator`], which takes nothing shared.
#[derive(Debug)]
struct Key(Arc<dyn ProducesTickets>);

impl ProducesTickets for Key {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}

/// Verifies as another does, and notes for the tickets of the handshake what was proved.
#[derive(Debug)]
pub struct Noting(pub Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Noting {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        let valid_until = valid_until(std::iter::once(end_entity).chain(intermediates));
        let session = Session { proved: now.as_secs(), valid_until };
        // Outside of a handshake of ours there are no tickets.
        let _ = HANDSHAKE.try_with(|proved| proved.set(Some(session)));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 10, 11: the age counts from the proof, whatever was resumed in between.
    #[tokio::test]
    async fn a_ticket_is_no_better_than_what_was_proved() {
        let tickets = Tickets::new().unwrap();
        let hour = u64::from(MAX_AGE);
        let session = Session { proved: 1000, valid_until: 1000 + 10 * hour };
        let ticket = tickets.seal(session, b"secret").unwrap();
        let opened = |now| tickets.open(&ticket, now).map(|(_, plain)| plain);
        for (now, good) in [(1000, true), (999 + hour, true), (1000 + hour, false), (999, false)] {
            assert_eq!(opened(now), good.then(|| b"secret".to_vec()), "{now}");
        }
        let short = Session { proved: 1000, valid_until: 1006 };
        let ticket = tickets.seal(short, b"").unwrap();
        assert_eq!([1006, 1007].map(|now| tickets.open(&ticket, now).is_some()), [true, false]);
        assert!(Tickets::new().unwrap().open(&ticket, 1000).is_none());

        // What follows from a ticket in the same handshake is as old.
        let now = UnixTime::now().as_secs();
        let before = Session { proved: now - 100, valid_until: now + 200 };
        let ticket = tickets.seal(before, b"secret").unwrap();
        let next = handshake(async {
            assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"secret"[..]));
            tickets.encrypt(b"next").unwrap()
        });
        assert_eq!(tickets.open(&next.await, now), Some((before, b"next".to_vec())));
        let first = handshake(async { tickets.encrypt(b"first").unwrap() }).await;
        let (session, _) = tickets.open(&first, UnixTime::now().as_secs()).unwrap();
        assert!(session.proved >= now && session.valid_until == u64::MAX);
        assert!(tickets.encrypt(b"no handshake").is_none() && tickets.decrypt(&ticket).is_none());
    }

    #[test]
    fn a_session_is_read_as_it_was_written() {
        let session = Session { proved: 1, valid_until: u64::MAX - 1 };
        let mut out = Vec::new();
        session.write(&mut out);
        assert_eq!(Session::read(out.try_into().unwrap()), session);
    }
}
