//! What rows of the audit say beside who, what and whose; and what a role that is shown names alone may ask.

use super::*;

impl Clinic {
    /// The newest row that fits `query`.
    async fn newest(&self, query: &str) -> Value {
        self.audit(query, 1000).await.into_iter().next().expect("a row")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_users_name_account_and_role() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let new = json!({"email": "Nurse+1@Clinic.example", "password": "a long password", "role": "BILLING"});
    let made = clinic.ask(Role::Admin, Method::POST, "/api/users", Some(&new)).await;
    assert_eq!(made.status(), StatusCode::CREATED);
    let row = clinic.newest("action=USER_CREATE").await;
    let account = json!("nurse+1@clinic.example");
    assert_eq!(
        (&row["account"], &row["accountRole"], &row["outcome"]),
        (&account, &json!("BILLING"), &json!("DONE"))
    );
    let again = clinic.ask(Role::Admin, Method::POST, "/api/users", Some(&new)).await;
    assert_eq!(again.status(), StatusCode::CONFLICT);
    let row = clinic.newest("action=USER_CREATE").await;
    assert_eq!((&row["account"], &row["outcome"]), (&account, &json!("REFUSED")));
    let path = "/api/users/NURSE%2B1%40clinic.example";
    for (body, role, disabled) in [
        (json!({"role": "AUDITOR"}), "AUDITOR", false),
        (json!({"disabled": true}), "AUDITOR", true),
        (json!({"role": "ANALYST", "disabled": false}), "ANALYST", false),
    ] {
        let changed = clinic.ask(Role::Admin, Method::PATCH, path, Some(&body)).await;
        assert_eq!(changed.status(), StatusCode::OK);
        let row = clinic.newest("action=USER_CHANGE").await;
        let said = (&row["account"], &row["accountRole"], &row["accountDisabled"]);
        assert_eq!(said, (&account, &json!(role), &json!(disabled)), "{body}");
    }
    let denied = clinic.ask(Role::Clinician, Method::PATCH, path, Some(&json!({"role": "ADMIN"}))).await;
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    let row = clinic.newest("action=USER_CHANGE").await;
    assert_eq!((&row["account"], &row["outcome"]), (&account, &json!("DENIED")));
    let said = clinic.site.run(&["audit", "verify"], "");
    assert!(said.contains("intact: "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_shown_names_alone_learns_nothing_else_by_searching() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let id = clinic.register(Role::FrontDesk, "sought").await;
    let list = async |role: Role, query: &str| {
        let answer = clinic.ask(role, Method::GET, &format!("/api/patients?{query}"), None).await;
        let status = answer.status();
        let text = answer.text().await.expect("text");
        (status, text.contains(&id), text)
    };
    for query in [
        "bornAfter=1980-05-16",
        "bornBefore=1980-05-18",
        "bornAfter=1980-05-16&bornBefore=1980-05-18",
        "email=patient-sought%40example.com",
        "registeredAfter=2024-01-09",
        "sort=born",
        "sort=-born",
        "sort=registered",
        "sort=-registered",
    ] {
        let (status, found, text) = list(Role::Billing, query).await;
        assert_eq!((status, found), (StatusCode::FORBIDDEN, false), "{query}: {text}");
        assert_eq!(list(Role::FrontDesk, query).await.0, StatusCode::OK, "{query}");
        let row = clinic.newest(&format!("subject={}&action=PATIENT_LIST", email(Role::Billing))).await;
        let asked = query.replace("%40", "@");
        assert_eq!((&row["outcome"], &row["search"]), (&json!("DENIED"), &json!(asked)));
    }
    // The beginning of a name is found, that of an address is not.
    let (status, found, _) = list(Role::Billing, "q=patient+sou").await;
    assert_eq!((status, found), (StatusCode::OK, true));
    let row = clinic.newest(&format!("subject={}&action=PATIENT_LIST", email(Role::Billing))).await;
    assert_eq!((&row["outcome"], &row["search"]), (&json!("DONE"), &json!("q=patient sou")));
    let (status, found, _) = list(Role::Billing, "q=patient-sought").await;
    assert_eq!((status, found), (StatusCode::OK, false));
    assert!(list(Role::FrontDesk, "q=patient-sought").await.1);
    // A cursor of whole records is none among names.
    for n in 0..3 {
        clinic.register(Role::FrontDesk, &format!("paged{n}")).await;
    }
    let page = clinic.ask(Role::FrontDesk, Method::GET, "/api/patients?q=patient&limit=1", None).await;
    let link = page.headers()["link"].to_str().expect("ASCII").to_owned();
    let next = &link[1..link.find('>').expect("a link")];
    let taken = clinic.ask(Role::Billing, Method::GET, next, None).await;
    assert_eq!(taken.status(), StatusCode::BAD_REQUEST);
    let mut pages = 0;
    let mut next = Some("/api/patients?q=patient&limit=1".to_owned());
    while let Some(path) = next {
        let page = clinic.ask(Role::Billing, Method::GET, &path, None).await;
        assert_eq!(page.status(), StatusCode::OK);
        let link = page.headers().get("link").map(|link| link.to_str().expect("ASCII").to_owned());
        next = link.map(|link| link[1..link.find('>').expect("a link")].to_owned());
        pages += 1;
    }
    assert!(pages >= 4, "{pages}");
    assert!(!clinic.node.log().contains("patient-sought"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_are_counted_before_they_are_recorded() {
    let site = Site::fresh()
        .set_up()
        .with("HYGEIA__HTTP__RATE_LIMIT_PER_S", "20")
        .with("HYGEIA__HTTP__RATE_LIMIT_BURST", "100");
    let clinic = Clinic::open(site).await;
    let path = "/api/analytics/summary";
    let began = std::time::Instant::now();
    let asked = (0..40).map(async |_| {
        let mut said = Vec::new();
        for _ in 0..20 {
            said.push(clinic.ask(Role::Auditor, Method::GET, path, None).await.status());
        }
        said
    });
    let said = futures::future::join_all(asked).await.concat();
    let took_s = usize::try_from(began.elapsed().as_secs()).expect("short") + 1;
    let denied = said.iter().filter(|status| **status == StatusCode::FORBIDDEN).count();
    let limited = said.iter().filter(|status| **status == StatusCode::TOO_MANY_REQUESTS).count();
    assert_eq!(denied + limited, 800);
    // Forty at once may each take one before the first has paid for its denial.
    assert!(denied <= 10 + 40 + 2 * took_s, "{denied} denials in {took_s} s");
    let other = clinic.ask(Role::Admin, Method::GET, path, None).await;
    assert_eq!(other.status(), StatusCode::OK, "another caller is not held up");
    let rows = crate::harness::eventually("the auditor may ask again", || async {
        let answer =
            clinic.ask(Role::Auditor, Method::GET, "/api/audit?action=ANALYTICS_READ&limit=1000", None);
        let answer = answer.await;
        (answer.status() == StatusCode::OK).then_some(answer)
    })
    .await;
    let rows: Vec<Value> = rows.json().await.expect("JSON");
    assert_eq!(rows.len(), denied, "a row for each denial, and for nothing else");
}
