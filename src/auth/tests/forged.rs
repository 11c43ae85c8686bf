//! Forged and malformed tokens are refused under either algorithm.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::Auth;
use crate::auth::fake::{FakeClock, FakeUsers, SECRET, auth_with, eddsa, settings};
use crate::domain::time::Clock;
use crate::error::ErrorCode;

use super::EMAIL;

/// The key that signs the tokens of these tests.
enum Key {
    Hmac(Vec<u8>),
    Ed(Box<Ed25519KeyPair>),
}

impl Key {
    fn sign(&self, message: &str) -> Vec<u8> {
        match self {
            Key::Hmac(secret) => {
                let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
                aws_lc_rs::hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
            }
            Key::Ed(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
        }
    }

    /// Returns a correctly signed token with this header and these claims.
    fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encoded(header), encoded(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(&message));
        format!("{message}.{signature}")
    }
}

fn encoded(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

/// A verifier, the key whose signatures it accepts, and a valid header and valid claims.
struct World {
    auth: Auth,
    key: Key,
    header: Value,
    claims: Value,
    public: Vec<u8>,
}

fn claims(clock: &FakeClock) -> Value {
    let now = clock.now().0 / 1_000_000;
    json!({
        "iss": "hygeia", "aud": "hygeia", "sub": EMAIL, "role": "ADMIN", "sid": Uuid::from_u128(1),
        "jti": Uuid::from_u128(2), "iat": now, "exp": now + 900,
    })
}

async fn with_eddsa() -> World {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth_with(&eddsa(), &users, &clock);
    auth.read_keys().await.expect("a key is made");
    let row = users.kept().keys[0].clone();
    let pair = Ed25519KeyPair::from_pkcs8(&row.private_key).expect("kept as it is");
    let public = pair.public_key().as_ref().to_vec();
    let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": row.kid});
    World { auth, key: Key::Ed(Box::new(pair)), header, claims: claims(&clock), public }
}

async fn with_hs256() -> World {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth_with(&settings(), &users, &clock);
    let header = json!({"alg": "HS256", "typ": "at+jwt"});
    let key = Key::Hmac(SECRET.as_bytes().to_vec());
    World { auth, key, header, claims: claims(&clock), public: vec![7; 32] }
}

impl World {
    fn header(&self, changes: &Value) -> String {
        self.key.token(&changed(&self.header, changes), &self.claims)
    }

    fn claims(&self, changes: &Value) -> String {
        self.key.token(&self.header, &changed(&self.claims, changes))
    }

    /// Signs a header and claims given as raw text, for forms that no JSON library writes.
    fn raw(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(self.key.sign(&message)))
    }
}

/// Returns `whole` with each key of `changes` set; null removes a key.
fn changed(whole: &Value, changes: &Value) -> Value {
    let mut whole = whole.clone();
    let fields = whole.as_object_mut().expect("an object");
    for (key, value) in changes.as_object().expect("an object") {
        if value.is_null() {
            fields.remove(key);
        } else {
            fields.insert(key.clone(), value.clone());
        }
    }
    whole
}

/// Wrong headers, each with a valid signature.
fn headers(world: &World) -> Vec<(&'static str, String)> {
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(&world.public)});
    let other = |alg: &str| if world.header["alg"] == alg { "HS384".to_owned() } else { alg.to_owned() };
    vec![
        ("alg none", world.header(&json!({"alg": "none"}))),
        ("alg None", world.header(&json!({"alg": "None"}))),
        ("alg NONE", world.header(&json!({"alg": "NONE"}))),
        ("no alg", world.header(&json!({"alg": null}))),
        ("alg empty", world.header(&json!({"alg": ""}))),
        ("alg a number", world.header(&json!({"alg": 256}))),
        ("alg a list", world.header(&json!({"alg": [world.header["alg"]]}))),
        ("the other algorithm", world.header(&json!({"alg": other("HS256")}))),
        ("alg HS512", world.header(&json!({"alg": "HS512"}))),
        ("alg RS256", world.header(&json!({"alg": "RS256"}))),
        ("alg PS256", world.header(&json!({"alg": "PS256"}))),
        ("alg ES256", world.header(&json!({"alg": "ES256"}))),
        ("alg Ed25519", world.header(&json!({"alg": "Ed25519"}))),
        ("alg in small letters", world.header(&json!({"alg": "eddsa"}))),
        ("jku", world.header(&json!({"jku": "https://example.com/keys"}))),
        ("x5u", world.header(&json!({"x5u": "https://example.com/cert"}))),
        ("jwk", world.header(&json!({"jwk": jwk}))),
        ("x5c", world.header(&json!({"x5c": ["MIIB"]}))),
        ("x5t", world.header(&json!({"x5t": "abc"}))),
        ("crit", world.header(&json!({"crit": ["exp"]}))),
        ("b64", world.header(&json!({"b64": false}))),
        ("zip", world.header(&json!({"zip": "DEF"}))),
        ("enc", world.header(&json!({"enc": "A256GCM"}))),
        ("cty", world.header(&json!({"cty": "JWT"}))),
        ("typ JWT", world.header(&json!({"typ": "JWT"}))),
        ("typ of a refresh token", world.header(&json!({"typ": "rt+jwt"}))),
        ("no typ", world.header(&json!({"typ": null}))),
        ("kid of nobody", world.header(&json!({"kid": "nobody"}))),
        ("kid empty", world.header(&json!({"kid": ""}))),
        ("kid a path", world.header(&json!({"kid": "../../dev/null"}))),
        ("kid a statement", world.header(&json!({"kid": "' OR 1=1 --"}))),
        ("kid a number", world.header(&json!({"kid": 1}))),
    ]
}

/// Wrong claims, each with a valid signature.
fn wrong_claims(world: &World) -> Vec<(&'static str, String)> {
    let now = world.claims["iat"].as_i64().expect("a number");
    vec![
        ("another issuer", world.claims(&json!({"iss": "elsewhere"}))),
        ("issuers", world.claims(&json!({"iss": ["hygeia"]}))),
        ("no issuer", world.claims(&json!({"iss": null}))),
        ("another audience", world.claims(&json!({"aud": "elsewhere"}))),
        ("audiences", world.claims(&json!({"aud": ["elsewhere", "hygeia"]}))),
        ("no audience", world.claims(&json!({"aud": null}))),
        ("audience in capitals", world.claims(&json!({"aud": "HYGEIA"}))),
        ("no subject", world.claims(&json!({"sub": null}))),
        ("subject empty", world.claims(&json!({"sub": ""}))),
        ("subject a number", world.claims(&json!({"sub": 7}))),
        ("subject unknown", world.claims(&json!({"sub": "nobody@example.com"}))),
        ("no role", world.claims(&json!({"role": null}))),
        ("role unknown", world.claims(&json!({"role": "OWNER"}))),
        ("role in small letters", world.claims(&json!({"role": "admin"}))),
        ("roles", world.claims(&json!({"role": ["ADMIN"]}))),
        ("no session", world.claims(&json!({"sid": null}))),
        ("session no uuid", world.claims(&json!({"sid": "1"}))),
        ("no id", world.claims(&json!({"jti": null}))),
        ("no end", world.claims(&json!({"exp": null}))),
        ("end a text", world.claims(&json!({"exp": "never"}))),
        ("end a fraction", world.claims(&json!({"exp": 1e300}))),
        ("end negative", world.claims(&json!({"exp": -1}))),
        ("over", world.claims(&json!({"exp": now - 3}))),
        ("over since 1970", world.claims(&json!({"exp": 0}))),
        ("not yet", world.claims(&json!({"nbf": now + 6}))),
        ("not before a text", world.claims(&json!({"nbf": "later"}))),
        ("made in the future", world.claims(&json!({"iat": now + 6}))),
        ("no beginning", world.claims(&json!({"iat": null}))),
        ("two ends", {
            let whole = world.claims.to_string();
            world.raw(&world.header.to_string(), &whole.replacen('{', "{\"exp\":99999999999,", 1))
        }),
        ("claims a list", world.key.token(&world.header, &json!([world.claims]))),
        ("claims a text", world.key.token(&world.header, &json!("x"))),
        ("claims no JSON", world.raw(&world.header.to_string(), "not JSON")),
        ("header no JSON", world.raw("not JSON", &world.claims.to_string())),
        ("two algorithms", {
            let whole = world.header.to_string();
            world.raw(&whole.replacen('{', "{\"alg\":\"none\",", 1), &world.claims.to_string())
        }),
    ]
}

/// Wrong signatures and malformed tokens.
fn wrong_forms(world: &World) -> Vec<(&'static str, String)> {
    let good = world.key.token(&world.header, &world.claims);
    let (message, signature) = good.rsplit_once('.').expect("three parts");
    let bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    let flipped = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes))
    };
    let stranger = Key::Ed(Box::new(Ed25519KeyPair::generate().expect("a pair")));
    let guessed = Key::Hmac(b"another secret that is long enough".to_vec());
    // The public key as the secret of an HMAC (algorithm confusion).
    let confused = Key::Hmac(world.public.clone());
    let hs256 = changed(&world.header, &json!({"alg": "HS256"}));
    let rsa = |alg| {
        let header = Header { typ: Some("at+jwt".into()), ..Header::new(alg) };
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&header, &world.claims, &key).expect("signed")
    };
    let other_claims = encoded(&changed(&world.claims, &json!({"sub": "root@example.com"})));
    let header = message.split('.').next().expect("a header");
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    vec![
        ("nothing", String::new()),
        ("dots", "..".into()),
        ("garbage", "garbage".into()),
        ("three words", "a.b.c".into()),
        ("endless", "x".repeat(100_000)),
        ("endless claims", format!("{header}.{}.{signature}", "A".repeat(3_000))),
        ("no signature", format!("{message}.")),
        ("two parts", message.to_owned()),
        ("four parts", format!("{good}.{signature}")),
        ("a signature of zeros", format!("{message}.{zeros}")),
        ("half a signature", format!("{message}.{}", &signature[..signature.len() / 2])),
        ("a signature and more", format!("{good}AAAA")),
        ("a signature with padding", format!("{good}==")),
        ("a signature with another last letter", {
            // Changes only bits beyond the last byte: a lenient decoder returns the same bytes.
            let last = signature.chars().last().expect("a letter");
            let next = char::from_u32(u32::from(last) + 1).expect("a letter");
            format!("{message}.{}{next}", &signature[..signature.len() - 1])
        }),
        ("first bit", flipped(0)),
        ("last bit", flipped(bytes.len() - 1)),
        ("other claims", format!("{header}.{other_claims}.{signature}")),
        ("a stranger's key", stranger.token(&world.header, &world.claims)),
        ("a guessed secret", guessed.token(&world.header, &world.claims)),
        ("the public key as secret", confused.token(&hs256, &world.claims)),
        ("the public key as secret, our alg", confused.token(&world.header, &world.claims)),
        ("an empty secret", Key::Hmac(Vec::new()).token(&hs256, &world.claims)),
        ("HS384 under the secret", rsa(Algorithm::HS384)),
        ("HS512 under the secret", rsa(Algorithm::HS512)),
        ("spaces before", format!(" {good}")),
        ("spaces within", good.replacen('.', ". ", 1)),
        ("a line break", format!("{good}\n")),
        ("standard base64", good.replacen('.', "+.", 1)),
        ("a zero byte", format!("{good}\0")),
        (
            "JSON serialization",
            json!({"payload": "x", "protected": header, "signature": signature}).to_string(),
        ),
    ]
}

async fn none_is_accepted(world: &World) -> usize {
    let good = world.key.token(&world.header, &world.claims);
    world.auth.authenticate(&good).await.expect("the pattern itself holds");
    let mut cases = headers(world);
    cases.extend(wrong_claims(world));
    cases.extend(wrong_forms(world));
    for (what, token) in &cases {
        let outcome = world.auth.authenticate(token).await.map(drop).map_err(|error| error.code);
        assert_eq!(outcome, Err(ErrorCode::Unauthenticated), "{what}");
        // Also refused the second time, when it could be cached.
        assert!(world.auth.authenticate(token).await.is_err(), "{what}, again");
    }
    world.auth.authenticate(&good).await.expect("it still holds");
    cases.len()
}

#[tokio::test]
async fn no_forged_token_is_accepted_under_eddsa() {
    let world = with_eddsa().await;
    let cases = none_is_accepted(&world).await;
    assert!(cases >= 90, "{cases}");
}

#[tokio::test]
async fn no_forged_token_is_accepted_under_hs256() {
    let world = with_hs256().await;
    let cases = none_is_accepted(&world).await;
    assert!(cases >= 90, "{cases}");
}

#[tokio::test]
async fn a_token_of_the_other_mode_is_none() {
    let (eddsa, hs256) = (with_eddsa().await, with_hs256().await);
    for (of, at) in [(&eddsa, &hs256), (&hs256, &eddsa)] {
        let token = of.key.token(&of.header, &of.claims);
        let error = at.auth.authenticate(&token).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::Unauthenticated);
    }
}

#[tokio::test]
async fn clocks_may_differ_by_two_seconds_and_no_more() {
    for world in [with_eddsa().await, with_hs256().await] {
        let now = world.claims["iat"].as_i64().expect("a number");
        for changes in [json!({"exp": now - 1}), json!({"nbf": now + 2}), json!({"iat": now + 2})] {
            world.auth.authenticate(&world.claims(&changes)).await.expect("within the leeway");
        }
        for changes in [json!({"exp": now - 2}), json!({"nbf": now + 3}), json!({"iat": now + 3})] {
            assert!(world.auth.authenticate(&world.claims(&changes)).await.is_err(), "{changes}");
        }
    }
}
