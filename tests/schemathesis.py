"""How schemathesis shows who it is: by one token, but for requests that end the sessions of their caller. Each of those
is sent by a user of its own, made for it: so none of the others finds itself logged out, or its user changed."""

import itertools
import os

import requests
import schemathesis

ENDS_SESSIONS = {"/auth/logout", "/auth/logout-all"}
URL = os.environ["HYGEIA_URL"]
TOKEN = os.environ["HYGEIA_TOKEN"]
NUMBERS = itertools.count()


def post(path, body):
    answer = requests.post(f"{URL}{path}", json=body, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20)
    answer.raise_for_status()
    return answer.json()


def token_of_a_leaver():
    leaver = {"email": f"leaver-{next(NUMBERS)}@schemathesis.example", "password": "a password to leave"}
    post("/api/users", {**leaver, "role": "CLINICIAN"})
    return post("/auth/login", leaver)["token"]


@schemathesis.auth(refresh_interval=None)
class Login:
    def get(self, case, context):
        return token_of_a_leaver() if case.path in ENDS_SESSIONS else TOKEN

    def set(self, case, data, context):
        case.headers["Authorization"] = f"Bearer {data}"
