// The REST API as functions. A refused request throws an ApiError whose words are the service's own.

const ROOT = "/api/v1/jobs";

/** What the service said about a refused request, or that it could not be asked. */
export class ApiError extends Error {
  constructor(message, { code = "unreachable", status = 0 } = {}) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

export const listJobs = (signal) => ask("", { signal });
export const getJob = (id, signal) => ask(`/${encodeURIComponent(id)}`, { signal });
export const getThroughput = (id, limit, signal) =>
  ask(`/${encodeURIComponent(id)}/throughput?limit=${limit}`, { signal });
export const scaleJob = (id, groups) => post(`/${encodeURIComponent(id)}/scale`, { groups });
export const cancelJob = (id) => post(`/${encodeURIComponent(id)}/cancel`);
export const eventsUrl = (id, after) => `${ROOT}/${encodeURIComponent(id)}/events?after=${after}`;

function post(path, body) {
  return ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(ROOT + path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service does not answer. It is asked again by itself.");
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  throw new ApiError(wordsOf(body?.error, answer.status), {
    code: body?.error?.code ?? "unknown",
    status: answer.status,
  });
}

function wordsOf(error, status) {
  if (!error) return `The service answered with status ${status} and no explanation.`;
  const sentence = error.field ? `${error.field}: ${error.message}` : error.message;
  return error.remedy && !sentence.includes(error.remedy) ? `${sentence} ${error.remedy}` : sentence;
}
