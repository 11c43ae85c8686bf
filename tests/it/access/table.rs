//! The table of roles and routes, cell by cell.

use super::*;

/// Every route that needs a caller, with what its caller must be permitted.
fn routes() -> Vec<(Method, &'static str, Action)> {
    vec![
        (Method::GET, "/auth/validate", Action::OwnToken),
        (Method::GET, "/api/patients", Action::PatientList),
        (Method::POST, "/api/patients", Action::PatientRegister),
        (Method::GET, "/api/patients/{id}", Action::PatientRead),
        (Method::PUT, "/api/patients/{id}", Action::PatientUpdate),
        (Method::PATCH, "/api/patients/{id}", Action::PatientUpdate),
        (Method::GET, "/api/patients/{id}/history", Action::PatientHistory),
        (Method::DELETE, "/api/patients/{id}", Action::PatientDelete),
        (Method::PUT, "/api/patients/{id}/restriction", Action::PatientRestrict),
        (Method::DELETE, "/api/patients/{id}/restriction", Action::PatientRestrict),
        (Method::GET, "/api/analytics/summary", Action::AnalyticsRead),
        (Method::GET, "/api/billing/accounts/{patientId}", Action::AccountRead),
        (Method::GET, "/api/users", Action::UserList),
        (Method::POST, "/api/users", Action::UserCreate),
        (Method::PATCH, "/api/users/{email}", Action::UserChange),
        (Method::POST, "/api/users/me/password", Action::OwnPassword),
        (Method::GET, "/api/audit", Action::AuditRead),
        (Method::GET, "/cluster", Action::ClusterRead),
        (Method::POST, "/auth/logout", Action::OwnSessions),
        (Method::POST, "/auth/logout-all", Action::OwnSessions),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_is_let_to_its_routes_and_to_no_other() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let routes = routes();

    // The list is whole: the interface's own description has no other route that needs a caller.
    let described: Value = serde_json::from_str(&clinic.site.run(&["openapi"], "")).expect("JSON");
    let mut guarded = BTreeSet::new();
    for (path, operations) in described["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            if operation["security"].is_array() {
                guarded.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    let listed: BTreeSet<_> = routes.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    assert_eq!(listed, guarded);

    let mut denied = 0;
    for role in Role::ALL {
        // The others end what the clinic's callers have: they come last.
        for (method, path, action) in routes.iter().filter(|(_, _, action)| *action != Action::OwnSessions) {
            let path = path.replace("{id}", &Uuid::now_v7().to_string());
            let path = path.replace("{patientId}", &Uuid::now_v7().to_string());
            let path = path.replace("{email}", "nobody@clinic.example");
            // No valid body: whoever is let in is told that, and nothing changes.
            let body = (*method != Method::GET && *method != Method::DELETE).then(|| json!({"x": 1}));
            let answer = clinic.ask(*role, method.clone(), &path, body.as_ref()).await;
            let said = format!("{} {method} {path}: {}", role.as_str(), answer.status());
            if action.permits(*role) {
                assert!(!matches!(answer.status().as_u16(), 401 | 403 | 405 | 500..), "{said}");
            } else {
                denied += 1;
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{said}");
                assert_eq!(answer.headers()["content-type"], "application/problem+json");
                let problem: Value = answer.json().await.expect("JSON");
                assert_eq!(problem["code"], "FORBIDDEN", "{said}");
            }
        }
        denied += usize::from(!opens_account(&clinic, *role).await);
    }
    let kept = clinic.audit("outcome=DENIED", 7).await;
    assert_eq!(kept.len(), denied, "each denial has a row");
    for role in Role::ALL {
        for (_, _, action) in &routes {
            let rows = kept.iter().filter(|row| {
                row["role"] == role.as_str()
                    && row["action"] == action.as_str()
                    && row["subject"] == email(*role)
            });
            let tried = routes.iter().filter(|(_, _, other)| other == action).count();
            let expected = if action.permits(*role) { 0 } else { tried };
            assert_eq!(rows.count(), expected, "{role:?} {action:?}");
        }
    }
    for role in Role::ALL {
        for (method, path, _) in routes.iter().filter(|(_, _, action)| *action == Action::OwnSessions) {
            let fresh = login(&clinic.node, &email(*role), PASSWORD).await.expect("logged in");
            let url = format!("{}{path}", clinic.node.http_url());
            let asked = clinic.node.client().request(method.clone(), url).bearer_auth(&fresh);
            let answer = asked.send().await.expect("an answer");
            assert!(answer.status().is_success(), "{} {path}: {}", role.as_str(), answer.status());
            let after = clinic.node.get(&fresh, "/auth/validate").await;
            assert_eq!(after.status(), StatusCode::UNAUTHORIZED, "{} {path}", role.as_str());
        }
    }
}

/// Whether `role` may open an account over gRPC; that it is told so is checked.
async fn opens_account(clinic: &Clinic, role: Role) -> bool {
    let mut client =
        BillingServiceClient::connect(clinic.node.grpc_url().to_owned()).await.expect("connects");
    let patient = clinic.register(Role::FrontDesk, &format!("account-{}", role.as_str())).await;
    let asked = BillingRequest {
        patient_id: patient.to_string(),
        name: "Ada Lovelace".into(),
        email: "ada@example.com".into(),
    };
    let mut request = tonic::Request::new(asked);
    let token = format!("Bearer {}", clinic.tokens[&role]).parse().expect("ASCII");
    request.metadata_mut().insert("authorization", token);
    let answer = client.create_billing_account(request).await;
    let rows =
        clinic.audit(&format!("patient={patient}&action=ACCOUNT_OPEN&subject={}", email(role)), 10).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((&rows[0]["action"], &rows[0]["subject"]), (&json!("ACCOUNT_OPEN"), &json!(email(role))));
    if Action::AccountOpen.permits(role) {
        answer.expect("opened");
        assert_eq!(rows[0]["outcome"], "DONE");
        return true;
    }
    assert_eq!(answer.expect_err("denied").code(), Code::PermissionDenied, "{role:?}");
    assert_eq!(rows[0]["outcome"], "DENIED");
    false
}
