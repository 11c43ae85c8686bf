"""Calls every operation of the interface by the client that openapi-python-client has generated of its description, and
looks at each answer: its status, and that the client could make something of it."""

import datetime
import importlib
import os
import pkgutil
import uuid

import hygeia_client
from hygeia_client import AuthenticatedClient, Client, api, models
from hygeia_client.models import PatientForm, PatientPatch, PatientReplacement, RoleName
from hygeia_client.types import UNSET

URL = os.environ["HYGEIA_URL"]
OPERATIONS = {
    module.name.rsplit(".", 1)[-1]: module.name
    for module in pkgutil.walk_packages(api.__path__, api.__name__ + ".")
    if not module.ispkg
}
called = set()


def call(operation, client, status, **arguments):
    """The answer of an operation, which must have this status."""
    called.add(operation)
    answer = importlib.import_module(OPERATIONS[operation]).sync_detailed(client=client, **arguments)
    assert answer.status_code == status, f"{operation}: {answer.status_code} {answer.content[:300]}"
    return answer


def login(email, password):
    body = models.Login(email=email, password=password)
    tokens = call("login", Client(base_url=URL), 200, body=body).parsed
    return tokens, AuthenticatedClient(base_url=URL, token=tokens.token)


def of_role(role):
    """A client of a new user."""
    email, password = f"{role.value.lower()}@clients.example", "violet anchor 18"
    made = call("create_user", admin, 201, body=models.UserForm(email=email, password=password, role=role)).parsed
    assert made.role == role and not made.disabled
    return login(email, password)[1]


def pages(operation, client, **arguments):
    """All that a list has, page by page."""
    cursor, found = UNSET, []
    while True:
        answer = call(operation, client, 200, cursor=cursor, **arguments)
        found += answer.parsed
        if "link" not in answer.headers:
            return found
        cursor = answer.headers["link"].split("cursor=")[1].split(">")[0]


tokens, admin = login(os.environ["HYGEIA_USER"], os.environ["HYGEIA_PASSWORD"])
next_tokens = call("refresh", Client(base_url=URL), 200, body=models.Refresh(refresh_token=tokens.refresh_token)).parsed
admin = AuthenticatedClient(base_url=URL, token=next_tokens.token)
call("validate", admin, 200)
assert call("keys", Client(base_url=URL), 200).parsed.keys
clinician = of_role(RoleName.CLINICIAN)
auditor = of_role(RoleName.AUDITOR)
billing = of_role(RoleName.BILLING)

# Patients.
born, registered = datetime.date(1985, 6, 15), datetime.date(2024, 1, 10)
form = PatientForm(
    name="Noa Client", email="noa@clients.example", address="1 Client Road", date_of_birth=born, registered_date=registered
)
made = call("register_patient", clinician, 201, body=form, idempotency_key=str(uuid.uuid4())).parsed
assert (made.name, made.date_of_birth, made.registered_date, made.version) == ("Noa Client", born, registered, 1)
seen = call("get_patient", clinician, 200, id=made.id)
assert seen.parsed == made
call("get_patient", clinician, 304, id=made.id, if_none_match=seen.headers["etag"])
assert call("get_patient", billing, 200, id=made.id).parsed == models.PatientName(id=made.id, name=made.name)
replacement = PatientReplacement(
    name="Noa Client", email="noa@clients.example", address="2 Client Road", date_of_birth=born
)
replaced = call("update_patient", clinician, 200, id=made.id, body=replacement, if_match='"1"').parsed
assert (replaced.address, replaced.registered_date, replaced.version) == ("2 Client Road", registered, 2)
call("update_patient", clinician, 412, id=made.id, body=replacement, if_match='"1"')
patched = call("patch_patient", clinician, 200, id=made.id, body=PatientPatch(address="3 Client Road")).parsed
assert (patched.address, patched.version) == ("3 Client Road", 3)
history = call("get_patient_history", clinician, 200, id=made.id).parsed
assert [entry.type_ for entry in history] == [models.EventName.PATIENT_CREATED] + 2 * [models.EventName.PATIENT_UPDATED]
assert history[2].changes.additional_properties["address"].to == "3 Client Road"
everybody = pages("list_patients", admin, sort=models.SortName.VALUE_3, limit=4)
assert len(everybody) > 4 and patched in everybody, "found on one of the pages"
problem = call("register_patient", clinician, 409, body=form).parsed
assert isinstance(problem, models.Problem) and problem.code == models.CodeName.ALREADY_EXISTS
call("restrict_patient", admin, 204, id=made.id)
problem = call("get_patient", admin, 403, id=made.id).parsed
assert problem.code == models.CodeName.FORBIDDEN
assert call("get_patient", clinician, 200, id=made.id, x_break_glass="seen by a generated client").parsed.restricted
call("unrestrict_patient", clinician, 204, id=made.id, x_break_glass="no longer needed")
call("delete_patient", clinician, 204, id=made.id)
call("get_patient", clinician, 404, id=made.id)

# A patient of the demo, who has an account by then.
john = uuid.UUID("123e4567-e89b-12d3-a456-426614174000")
account = call("get_account", billing, 200, patient_id=john).parsed
assert (account.patient_id, account.status) == (john, models.AccountState.ACTIVE)

# Who may what, who did what, and how many.
change = models.UserChange(disabled=True, role=RoleName.ANALYST)
changed = call("change_user", admin, 200, email="billing@clients.example", body=change).parsed
assert changed.disabled and changed.role == RoleName.ANALYST
users = call("list_users", admin, 200, limit=100).parsed
assert changed in users and len(users) == 4
accesses = pages("list_accesses", auditor, patient=made.id, action=models.ActionName.PATIENT_READ, limit=2)
assert {access.outcome for access in accesses} == {models.OutcomeName.DONE, models.OutcomeName.DENIED, models.OutcomeName.REFUSED}
assert "seen by a generated client" in {access.reason for access in accesses}
summary = call("get_summary", admin, 200).parsed
assert len(summary.registrations_by_day) == 30

# Operators.
cluster = call("cluster_status", admin, 200).parsed
assert cluster.nodes[0].answers and models.NodeRole.FRONT in cluster.nodes[0].roles and cluster.leases
assert call("ready", Client(base_url=URL), 200).parsed.status == "ready"
call("live", Client(base_url=URL), 200)
assert "hygeia_http_requests_total" in call("metrics", Client(base_url=URL), 200).parsed
for document in ("openapi", "openapi_auth", "openapi_patients"):
    assert "paths" in call(document, Client(base_url=URL), 200).parsed.additional_properties
assert call("index", Client(base_url=URL), 200).parsed.links["swagger"] == "/swagger-ui/"
call("swagger_redirect", Client(base_url=URL), 308)
call("swagger", Client(base_url=URL), 200)
call("swagger_file", Client(base_url=URL), 200, file="index.css")

# The last, since it ends sessions.
call("change_password", clinician, 204, body=models.PasswordForm(old_password="violet anchor 18", new_password="violet anchor 19"))
call("logout", login("clinician@clients.example", "violet anchor 19")[1], 204)
call("logout_all", admin, 204)
call("validate", admin, 401)

missing = OPERATIONS.keys() - called
assert not missing, f"never called: {missing}"
print(f"{len(called)} operations of {hygeia_client.__name__} called")
