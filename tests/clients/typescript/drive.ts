// Logs in, registers a patient and reads it, by the types that openapi-typescript has generated of the description. That
// it compiles says as much as that it runs: every name and type here comes from there.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { env: Record<string, string> };

type Patient = components["schemas"]["Patient"];
type Form = components["schemas"]["PatientForm"];

function check(holds: boolean, what: string, seen: unknown): asserts holds {
  if (!holds) throw new Error(`${what}: ${JSON.stringify(seen)}`);
}

const baseUrl = process.env.HYGEIA_URL;
const stranger = createClient<paths>({ baseUrl });
const { data: first } = await stranger.POST("/auth/login", {
  body: { email: process.env.HYGEIA_USER, password: process.env.HYGEIA_PASSWORD },
});
check(first !== undefined, "logged in", first);
const { data: tokens } = await stranger.POST("/auth/refresh", { body: { refreshToken: first.refreshToken } });
check(tokens !== undefined, "refreshed", tokens);

const caller = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${tokens.token}` } });
const form: Form = {
  name: "Tess Typescript",
  email: "tess@clients.example",
  address: "1 Type Road",
  dateOfBirth: "1985-06-15",
  registeredDate: "2024-01-10",
};
// @ts-expect-error: the description says that no field may be missing.
const incomplete: Form = { name: "x", email: "x@clients.example", address: "x", dateOfBirth: "1985-06-15" };

const { data: made, response } = await caller.POST("/api/patients", { body: form });
check(response.status === 201 && made !== undefined, "registered", made);
const { data: seen } = await caller.GET("/api/patients/{id}", { params: { path: { id: made.id } } });
check(seen !== undefined && (seen as Patient).dateOfBirth === form.dateOfBirth, "read", seen);

const refused = await caller.POST("/api/patients", { body: { ...incomplete, registeredDate: "2024-01-10", email: form.email } });
const code: components["schemas"]["CodeName"] | undefined = refused.error?.code;
check(code === "ALREADY_EXISTS", "taken", refused.error);
const { data: listed } = await caller.GET("/api/patients", { params: { query: { sort: "-name", limit: 1 } } });
check(listed?.length === 1, "listed", listed);
const { data: cluster } = await caller.GET("/cluster");
const roles: components["schemas"]["NodeRole"][] | undefined = cluster?.nodes?.[0]?.roles;
check(roles?.includes("front") === true, "the cluster", cluster);
console.log("a client in TypeScript has logged in, registered, read and listed");
