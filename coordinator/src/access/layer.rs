//! The gate in front of all services: finds the caller, compares with the table, refuses or hands on.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use kiln_common::{Reason, Timestamp};
use kiln_proto::status::Refused;
use tonic::{
    Status,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};
use tower::{Layer, Service};

use super::{ApiTokens, Caller, table};
use crate::{
    audit::{Action, Actor, Object, Trail, Who},
    pki::{Revocations, worker_of},
};

/// Put it around the whole gRPC server: `Server::builder().layer(access)`.
#[derive(Clone)]
pub struct AccessLayer {
    tokens: Arc<ApiTokens>,
    revocations: Arc<Revocations>,
    trail: Trail,
}

impl AccessLayer {
    #[must_use]
    pub const fn new(tokens: Arc<ApiTokens>, revocations: Arc<Revocations>, trail: Trail) -> Self {
        Self { tokens, revocations, trail }
    }

    /// The caller, if it may call the method.
    fn admit<B>(&self, request: &http::Request<B>) -> Result<Caller, Status> {
        let path = request.uri().path();
        let need = table::need(path).ok_or_else(|| {
            Status::unimplemented(format!("there is no method `{}`", path.chars().take(128).collect::<String>()))
        })?;
        let admitted = match need {
            table::Need::Open => self.open(request),
            table::Need::Role(role) => self.token(request, role),
            table::Need::Worker => self.worker(request),
        };
        admitted.map_err(|refused| {
            let object = Object::method(path);
            self.trail.refuse(self.who(request).was_refused(Action::Call, object, refused.message.as_str()));
            Status::from(refused)
        })
    }

    /// Who was refused, as far as the request tells.
    fn who<B>(&self, request: &http::Request<B>) -> Who {
        let token = bearer(request).and_then(|text| self.tokens.authenticate(text, Timestamp::now()));
        let worker = || certificate(request).and_then(|chain| worker_of(chain.first()?).ok());
        let actor = match token {
            Some(caller) => (&caller).into(),
            None => worker().map_or(Actor::Unknown, |id| Actor::Worker { id }),
        };
        let connection = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let source = connection.and_then(|info| info.get_ref().remote_addr());
        Who { actor, source: source.map(|address| address.ip().to_canonical()) }
    }

    /// A certificate that no longer counts is as good as none: `Enroll` with a join token must work with it.
    fn open<B>(&self, request: &http::Request<B>) -> Result<Caller, Refused> {
        Ok(self.worker(request).unwrap_or(Caller::Anonymous))
    }

    fn token<B>(&self, request: &http::Request<B>, needed: super::Role) -> Result<Caller, Refused> {
        let Some(text) = bearer(request) else {
            return Err(if certificate(request).is_some() {
                Refused::new(Reason::PermissionDenied, "a worker's certificate does not allow this call")
            } else {
                Refused::new(
                    Reason::Unauthenticated,
                    "an API token is missing; log in with `kiln login` or set KILN_TOKEN",
                )
            });
        };
        let unknown = "the API token is unknown, expired or revoked; get a new one from an admin of the farm";
        let caller = self
            .tokens
            .authenticate(text, Timestamp::now())
            .ok_or_else(|| Refused::new(Reason::Unauthenticated, unknown))?;
        match &caller {
            Caller::Token { role, .. } if *role >= needed => Ok(caller),
            Caller::Token { name, role, .. } => Err(Refused::new(
                Reason::PermissionDenied,
                format!("the token `{name}` has the role {role}; this call needs {needed}"),
            )),
            Caller::Worker(_) | Caller::Anonymous => Err(Refused::new(Reason::Unauthenticated, unknown)),
        }
    }

    fn worker<B>(&self, request: &http::Request<B>) -> Result<Caller, Refused> {
        let unauthenticated = |message: String| Refused::new(Reason::Unauthenticated, message);
        let chain = certificate(request)
            .ok_or_else(|| unauthenticated("this call needs a worker's certificate; enrol with a join token".into()))?;
        let leaf = chain.first().ok_or_else(|| unauthenticated("the client certificate is empty".into()))?;
        let worker = worker_of(leaf).map_err(|error| unauthenticated(error.to_string()))?;
        if self.revocations.contains(worker) {
            return Err(unauthenticated(format!("worker {worker} was removed from the farm; enrol again")));
        }
        Ok(Caller::Worker(worker))
    }
}

type Chain = Arc<Vec<rustls_pki_types::CertificateDer<'static>>>;

fn certificate<B>(request: &http::Request<B>) -> Option<Chain> {
    request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>()?.peer_certs()
}

/// RFC 6750, section 2.1; the scheme's name in any case (RFC 9110, section 11.1).
fn bearer<B>(request: &http::Request<B>) -> Option<&str> {
    let header = request.headers().get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, text) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| text.trim())
}

impl<S> Layer<S> for AccessLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { access: self.clone(), inner }
    }
}

#[derive(Clone)]
pub struct Gate<S> {
    access: AccessLayer,
    inner: S,
}

impl<S, B, R> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    R: Default + 'static,
{
    type Response = http::Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self.access.admit(&request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Box::pin(self.inner.call(request))
            }
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::status::StatusFacts;

    use super::{super::Role, *};
    use crate::store::MemoryStore;

    async fn layer() -> (AccessLayer, Arc<ApiTokens>) {
        let store = Arc::new(MemoryStore::default());
        let tokens = Arc::new(ApiTokens::load(Arc::clone(&store) as _).await.expect("loaded"));
        let (trail, _) = Trail::open(store).await.expect("opened");
        (AccessLayer::new(Arc::clone(&tokens), Arc::default(), trail), tokens)
    }

    fn request(path: &str, authorization: Option<&str>) -> http::Request<()> {
        let builder = http::Request::builder().uri(format!("https://farm{path}"));
        let builder = authorization.into_iter().fold(builder, |builder, text| builder.header("authorization", text));
        builder.body(()).expect("request")
    }

    fn reason(status: &Status) -> String {
        StatusFacts::from(status).reason.expect("a reason")
    }

    #[tokio::test]
    async fn each_role_reaches_what_it_may_and_nothing_more() {
        let (layer, tokens) = layer().await;
        for (role, submit, revoke) in
            [(Role::Viewer, false, false), (Role::Submitter, true, false), (Role::Admin, true, true)]
        {
            let new = tokens.create("t", role, None, Timestamp::now()).await.expect("made");
            let header = format!("bearer {}", *new.secret);
            let admitted = |path| layer.admit(&request(path, Some(&header)));
            assert!(admitted("/kiln.v1.BuildService/Get").is_ok());
            assert_eq!(admitted("/kiln.v1.BuildService/Submit").is_ok(), submit, "{role}");
            assert_eq!(admitted("/kiln.v1.FarmService/RevokeApiToken").is_ok(), revoke, "{role}");
            let error = admitted("/kiln.v1.WorkerService/Session").expect_err("no certificate");
            assert_eq!(reason(&error), "UNAUTHENTICATED");
        }
    }

    #[tokio::test]
    async fn refusals_say_what_is_missing() {
        let (layer, tokens) = layer().await;
        let submit = "/kiln.v1.BuildService/Submit";
        let error = layer.admit(&request(submit, None)).expect_err("no token");
        assert_eq!((reason(&error).as_str(), error.message().contains("kiln login")), ("UNAUTHENTICATED", true));
        let error = layer.admit(&request(submit, Some("Bearer kiln_guess"))).expect_err("unknown token");
        assert!(error.message().contains("unknown, expired or revoked"));
        let new = tokens.create("eyes", Role::Viewer, None, Timestamp::now()).await.expect("made");
        let error = layer.admit(&request(submit, Some(&format!("Bearer {}", *new.secret)))).expect_err("a viewer");
        assert_eq!(reason(&error), "PERMISSION_DENIED");
        assert_eq!(error.message(), "the token `eyes` has the role viewer; this call needs submitter");
    }

    #[tokio::test]
    async fn open_methods_let_everybody_in_and_unknown_ones_nobody() {
        let (layer, _) = layer().await;
        for path in ["/grpc.health.v1.Health/Check", "/kiln.v1.WorkerService/Enroll"] {
            assert_eq!(layer.admit(&request(path, None)).expect("open"), Caller::Anonymous);
        }
        let error = layer.admit(&request("/kiln.v1.Nope/Nope", None)).expect_err("no such method");
        assert_eq!(error.code(), tonic::Code::Unimplemented);
    }
}
