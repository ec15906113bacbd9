// The REST API as functions. A refused request throws an ApiError whose words are the service's own.

const ROOT = "/api/v1";

/** What the service said about a refused request, or that it could not be asked. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{code?: string, status?: number, problems?: object[]}} answer `problems` are the broken
   *        rules of a specification: `{field, value, rule, remedy}`
   */
  constructor(message, { code = "unreachable", status = 0, problems = [] } = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.problems = problems;
  }
}

/** Who wants to know how requests fare: `reached`, `unreachable` or `unauthorised`. */
const listeners = new Set();

/** @param {(news: "reached" | "unreachable" | "unauthorised") => void} listener */
export const onNews = (listener) => listeners.add(listener);

const jobPath = (id, rest = "") => `/jobs/${encodeURIComponent(id)}${rest}`;

/** @param {{state?: string, label?: string, limit?: number, cursor?: string}} query */
export const listJobs = (query, signal) => ask(`/jobs?${parametersOf(query)}`, { signal });
export const getJob = (id, signal) => ask(jobPath(id), { signal });
export const getThroughput = (id, points, signal) =>
  ask(jobPath(id, `/throughput?points=${points}`), { signal });
export const listEvents = (id, query, signal) =>
  ask(jobPath(id, `/events/list?${parametersOf(query)}`), { signal });
export const getCheckpoints = (id, signal) => ask(jobPath(id, "/checkpoints"), { signal });
export const getCluster = (signal) => ask("/cluster", { signal });

/** @param {{groups?: number, minimum?: number, maximum?: number}} wanted */
export const scaleJob = (id, wanted) => post(jobPath(id, "/scale"), wanted);
/** @param {"cancel" | "pause" | "resume"} action */
export const steerJob = (id, action) => post(jobPath(id, `/${action}`));
export const deleteJob = (id) => ask(jobPath(id), { method: "DELETE" });

export const validateJob = (text, signal) =>
  ask("/jobs/validate", { ...specification(text), signal });
/** @param {string} key the same key gives the same job, so that a repeated request starts no second */
export const submitJob = (text, key) => {
  const request = specification(text);
  return ask("/jobs", { ...request, headers: { ...request.headers, "Idempotency-Key": key } });
};
export const planJob = (request) => post("/plans", request);

export const getSession = () => ask("/session", {});
export const logIn = (token) => post("/session", { token });
export const logOut = () => ask("/session", { method: "DELETE" });

export const eventsUrl = (id, after) => `${ROOT}${jobPath(id, `/events?after=${after}`)}`;

/**
 * Open a log as a stream of text.
 * @param {{tail: number, worker?: string, follow?: boolean}} query
 * @returns {Promise<ReadableStream<string>>}
 */
export async function openLog(id, query, signal) {
  const answer = await request(jobPath(id, `/logs?${parametersOf(query)}`), { signal });
  if (!answer.ok) throw await errorOf(answer);
  return answer.body.pipeThrough(new TextDecoderStream());
}

function parametersOf(query) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one || one === 0) parameters.append(name, one);
  }
  return parameters;
}

function specification(text) {
  // JSON is YAML too, but the service's words on a broken JSON text are better.
  const kind = text.trimStart().startsWith("{") ? "json" : "yaml";
  return { method: "POST", headers: { "Content-Type": `application/${kind}` }, body: text };
}

function post(path, body) {
  return ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
}

async function ask(path, options) {
  const answer = await request(path, options);
  if (!answer.ok) throw await errorOf(answer);
  return answer.status === 204 ? null : answer.json();
}

async function request(path, options) {
  let answer;
  try {
    answer = await fetch(ROOT + path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    tell("unreachable");
    throw new ApiError("The service does not answer. It is asked again by itself.");
  }
  tell(answer.status === 401 ? "unauthorised" : "reached");
  return answer;
}

const tell = (news) => listeners.forEach((listener) => listener(news));

async function errorOf(answer) {
  const body = await answer.json().catch(() => null);
  return new ApiError(wordsOf(body?.error, answer.status), {
    code: body?.error?.code ?? "unknown",
    status: answer.status,
    problems: body?.error?.problems ?? [],
  });
}

function wordsOf(error, status) {
  if (!error) return `The service answered with status ${status} and no explanation.`;
  const sentence = error.field ? `${error.field}: ${error.message}` : error.message;
  return error.remedy && !sentence.includes(error.remedy) ? `${sentence} ${error.remedy}` : sentence;
}
