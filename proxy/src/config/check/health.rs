//! Health checks: what a service inherits, and which keys go with which type.

use std::time::Duration;

use http::Method;
use http::uri::PathAndQuery;

use super::super::checked::{self, CheckKind, GrpcCheck, HttpCheck, UpstreamProtocol};
use super::super::file::Services;
use super::super::health::{ANY_TYPE, HealthCheck, Keys, Type};
use super::super::problem::Problems;
use super::super::read::At;
use super::super::service::Service;

impl HealthCheck {
    /// What is written, and `base` where nothing is. Of another type only what every type has is inherited.
    pub fn inherit(&self, base: Option<&checked::HealthCheck>) -> Option<checked::HealthCheck> {
        let HealthCheck::On(written) = self else { return None };
        let written = &written.value;
        let kind = match (written.kind.as_ref().map(|at| at.value), base.map(|base| &base.kind)) {
            (Some(Type::Tcp), _) | (None, Some(CheckKind::Tcp)) => CheckKind::Tcp,
            (Some(Type::Http) | None, Some(CheckKind::Http(base))) => CheckKind::Http(written.http(base)),
            (Some(Type::Http), _) => CheckKind::Http(written.http(&built_in_request())),
            (Some(Type::Grpc) | None, Some(CheckKind::Grpc(base))) => CheckKind::Grpc(written.grpc(base)),
            (Some(Type::Grpc), _) => CheckKind::Grpc(written.grpc(&GrpcCheck::default())),
            // Reported already.
            (None, None) => return None,
        };
        Some(checked::HealthCheck {
            kind,
            interval: written.interval.or(base.map(|base| base.interval)).unwrap_or(Duration::from_secs(2)),
            timeout: written.timeout.or(base.map(|base| base.timeout)).unwrap_or(Duration::from_secs(1)),
            rise: written.rise.or(base.map(|base| base.rise)).unwrap_or(2),
            fall: written.fall.or(base.map(|base| base.fall)).unwrap_or(3),
        })
    }

    fn kind(&self) -> Option<&At<Type>> {
        match self {
            HealthCheck::Off => None,
            HealthCheck::On(keys) => keys.value.kind.as_ref(),
        }
    }
}

fn built_in_request() -> HttpCheck {
    HttpCheck {
        method: Method::GET,
        path: PathAndQuery::from_static("/"),
        host: None,
        statuses: std::iter::once(200..=200).collect(),
    }
}

impl Keys {
    fn http(&self, base: &HttpCheck) -> HttpCheck {
        HttpCheck {
            method: value(&self.method).unwrap_or_else(|| base.method.clone()),
            path: value(&self.path).unwrap_or_else(|| base.path.clone()),
            host: value(&self.host).or_else(|| base.host.clone()),
            statuses: value(&self.status).unwrap_or_else(|| base.statuses.clone()),
        }
    }

    fn grpc(&self, base: &GrpcCheck) -> GrpcCheck {
        GrpcCheck {
            service: value(&self.service).unwrap_or_else(|| base.service.clone()),
            host: value(&self.host).or_else(|| base.host.clone()),
        }
    }

    /// Reports the keys that say nothing to a check of this type.
    fn report_misplaced(&self, kind: Type, problems: &mut Problems) {
        let (http, grpc) = (kind == Type::Http, kind == Type::Grpc);
        report_unless(http, self.method.as_ref(), kind, "type = \"http\"", problems);
        report_unless(http, self.path.as_ref(), kind, "type = \"http\"", problems);
        report_unless(http, self.status.as_ref(), kind, "type = \"http\"", problems);
        report_unless(http || grpc, self.host.as_ref(), kind, "type = \"http\" or \"grpc\"", problems);
        report_unless(grpc, self.service.as_ref(), kind, "type = \"grpc\"", problems);
    }
}

fn value<T: Clone>(at: &Option<At<T>>) -> Option<T> {
    at.as_ref().map(|at| at.value.clone())
}

fn report_unless<T>(fits: bool, at: Option<&At<T>>, kind: Type, expected: &str, problems: &mut Problems) {
    if let Some(at) = at.filter(|_| !fits) {
        problems.add(at.problem(format!("type = {:?} has no use for it", kind.name()), format!("expected {expected}")));
    }
}

/// Reports checks whose type nobody says, keys that do not go with the type, and gRPC where HTTP/1.1 is spoken.
pub(super) fn report(services: &Services, problems: &mut Problems) {
    let default = &services.default;
    report_of(default, None, default, problems);
    let inherited = default.health_check.as_ref().and_then(HealthCheck::kind);
    for service in &services.named {
        report_of(&service.settings, inherited, default, problems);
    }
}

fn report_of(service: &Service, inherited: Option<&At<Type>>, default: &Service, problems: &mut Problems) {
    let own = service.health_check.as_ref().and_then(HealthCheck::kind);
    let kind = own.or(inherited);
    match (&service.health_check, kind) {
        (Some(HealthCheck::Off), _) => return,
        // A type that was refused has been reported.
        (Some(HealthCheck::On(keys)), _) if own.is_none() && keys.value.says_type => return,
        (Some(HealthCheck::On(keys)), Some(kind)) => keys.value.report_misplaced(kind.value, problems),
        (Some(HealthCheck::On(keys)), None) => {
            problems.add(keys.problem("it has no type", format!("expected type = {ANY_TYPE}")));
        }
        (None, _) => {}
    }
    let protocol = service.protocol.or(default.protocol);
    if let Some(at) = kind.filter(|at| at.value == Type::Grpc && protocol == Some(UpstreamProtocol::Http1)) {
        let found = "gRPC needs HTTP/2, and the service's protocol is \"http1\"";
        problems.add(at.problem(found, "expected another type, or another protocol for the service"));
    }
}
