// Opens `/` and Swagger UI in Chromium, authorizes there with a token, and reads a patient: by the DevTools protocol over
// pipes, which needs nothing but Node.js and the browser.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const URL = process.env.HYGEIA_URL;
const PATIENCE_MS = 120_000;
const JOHN = "123e4567-e89b-12d3-a456-426614174000";

const profile = mkdtempSync(join(tmpdir(), "hygeia-browser-"));
const browser = spawn(
  "chromium",
  [
    "--headless=new",
    // The tests run as root in CI, where the sandbox does not start; the pages are our own.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-pipe",
    `--user-data-dir=${profile}`,
    "about:blank",
  ],
  { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] },
);
browser.on("error", (error) => {
  console.error(`chromium: ${error.message}; \`make setup\` installs it`);
  process.exit(1);
});

// Messages are JSON, each ended by a NUL.
const waiting = new Map();
const complaints = [];
let last = 0;
let rest = "";
browser.stdio[4].setEncoding("utf8").on("data", (data) => {
  const messages = (rest + data).split("\0");
  rest = messages.pop();
  for (const message of messages.map((text) => JSON.parse(text))) {
    if (message.id) {
      const { resolve, reject } = waiting.get(message.id);
      waiting.delete(message.id);
      if (message.error) reject(new Error(JSON.stringify(message.error)));
      else resolve(message.result);
    } else if (message.method === "Runtime.exceptionThrown") {
      complaints.push(message.params.exceptionDetails.text);
    } else if (message.method === "Log.entryAdded" && message.params.entry.level === "error") {
      complaints.push(`${message.params.entry.text} ${message.params.entry.url ?? ""}`);
    }
  }
});

function send(method, params = {}, sessionId = undefined) {
  const id = ++last;
  browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

async function inPage(session, expression) {
  const answer = await send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true }, session);
  if (answer.exceptionDetails) throw new Error(`${expression}: ${JSON.stringify(answer.exceptionDetails)}`);
  return answer.result.value;
}

/** Waits until the page says yes. */
async function until(session, expression) {
  const end = Date.now() + PATIENCE_MS / 2;
  for (;;) {
    const value = await inPage(session, expression).catch(() => undefined);
    if (value) return value;
    if (Date.now() > end) {
      const seen = await inPage(session, "document.body.innerText.slice(-2000)");
      throw new Error(`never: ${expression}\n${complaints.join("\n")}\n${seen}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const click = async (session, selector) => {
  await until(session, `!!document.querySelector(${JSON.stringify(selector)})`);
  await inPage(session, `document.querySelector(${JSON.stringify(selector)}).click()`);
};

/** Types into a field, so that the page's own code hears of it. */
const type = async (session, selector, text) => {
  await until(session, `!!document.querySelector(${JSON.stringify(selector)})`);
  await inPage(session, `document.querySelector(${JSON.stringify(selector)}).focus()`);
  await send("Input.insertText", { text }, session);
};

async function main() {
  const login = { email: process.env.HYGEIA_USER, password: process.env.HYGEIA_PASSWORD };
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${URL}/auth/login`, { method: "POST", headers, body: JSON.stringify(login) });
  const { token } = await answer.json();

  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  for (const domain of ["Page", "Runtime", "Log"]) await send(`${domain}.enable`, {}, sessionId);

  await send("Page.navigate", { url: `${URL}/` }, sessionId);
  await until(sessionId, `document.title === "Hygeia" && document.links.length >= 5`);
  await click(sessionId, `a[href="/swagger-ui/"]`);

  await click(sessionId, ".auth-wrapper .authorize");
  await type(sessionId, ".modal-ux input", token);
  await click(sessionId, ".modal-ux .auth-btn-wrapper .authorize");
  await click(sessionId, ".modal-ux .btn-done");

  const operation = "#operations-patients-getPatient";
  await click(sessionId, `${operation} .opblock-summary-control`);
  await click(sessionId, `${operation} .try-out__btn`);
  await type(sessionId, `${operation} tr[data-param-name="id"] input`, JOHN);
  // The page takes over what is typed a little later, and until then sends nothing.
  await until(sessionId, `!!document.querySelector("${operation} .execute")`);
  const live = `document.querySelector("${operation} .live-responses-table .response")?.innerText`;
  const shown = await until(sessionId, `${live} || document.querySelector("${operation} .execute").click()`);
  if (!shown.includes("200") || !shown.includes("John Doe")) throw new Error(`the patient is not shown: ${shown}`);

  // The icon that every browser asks for, of a page that names none.
  const unexpected = complaints.filter((complaint) => !complaint.includes("/favicon.ico"));
  if (unexpected.length > 0) throw new Error(`the browser complains: ${unexpected.join("\n")}`);
  console.log("a browser has opened the page, authorized, and read a patient");
}

const timer = setTimeout(() => {
  console.error(`longer than ${PATIENCE_MS} ms\n${complaints.join("\n")}`);
  browser.kill("SIGKILL");
  process.exit(1);
}, PATIENCE_MS);
let failed = false;
try {
  await main();
} catch (error) {
  console.error(error);
  failed = true;
}
clearTimeout(timer);
browser.kill("SIGKILL");
await new Promise((resolve) => (browser.exitCode === null && browser.signalCode === null ? browser.once("exit", resolve) : resolve()));
rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
process.exit(failed ? 1 : 0);
