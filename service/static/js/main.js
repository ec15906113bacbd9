// Puts the page together: the address decides which view is shown.

import { onNews } from "./api.js";
import { ClusterView } from "./cluster-view.js";
import { byId, showMessage } from "./dom.js";
import { clock } from "./format.js";
import { JobPage } from "./job-page.js";
import { ListView } from "./list-view.js";
import { Session } from "./session.js";
import { SubmitView } from "./submit-view.js";
import { startTheme } from "./theme.js";

const NARROW = "(max-width: 860px)";
const TITLES = { list: "mics", submit: "New job · mics", cluster: "Cluster · mics", login: "Log in · mics" };

class Page {
  #list = new ListView();
  #job = new JobPage(() => this.#leave());
  #cluster = new ClusterView();
  #submit = new SubmitView((jobId) => this.#visit(jobId));
  #session = new Session(() => this.#route());
  #reachedAt = Date.now();

  async start() {
    startTheme();
    onNews((news) => this.#hear(news));
    addEventListener("hashchange", () => {
      this.#route();
      // On a narrow screen the list and the job take turns: begin at the top of what is new.
      if (matchMedia(NARROW).matches) {
        scrollTo(0, 0);
        byId("content").focus();
      }
    });
    // A plain link to #content would change the address, and with it the job.
    byId("skip").addEventListener("click", (event) => {
      event.preventDefault();
      byId("content").focus();
    });
    if (await this.#session.start()) this.#route();
  }

  #route() {
    const jobId = jobOf(location.hash);
    const view = jobId ? "job" : { "#/submit": "submit", "#/cluster": "cluster" }[location.hash] ?? "list";
    this.#show(view);
    this.#list.start(jobId);
    if (jobId) this.#job.open(jobId);
    else document.title = TITLES[view];
    if (view === "cluster") this.#cluster.start();
    if (view === "submit") this.#submit.start();
  }

  #show(view) {
    byId("layout").dataset.showing = view;
    this.#job.close();
    this.#cluster.stop();
    for (const each of ["submit", "cluster", "login"]) byId(each).hidden = each !== view;
    for (const id of ["nothing", "list-title"]) byId(id).hidden = view !== "list";
    byId("primary").hidden = view === "login";
    for (const link of byId("primary").children) {
      const isHere = link.dataset.view === { list: "jobs", job: "jobs" }[view] || link.dataset.view === view;
      if (isHere) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  #hear(news) {
    if (news === "unauthorised") {
      if (byId("layout").dataset.showing === "login") return;
      this.#session.expire();
      this.#list.stop();
      this.#show("login");
      document.title = TITLES.login;
      byId("login-token").focus();
      return;
    }
    if (news === "reached") this.#reachedAt = Date.now();
    const since = clock(this.#reachedAt / 1000);
    const words = `The service does not answer since ${since}. What is shown may be old; it is asked again by itself.`;
    showMessage(byId("offline"), news === "unreachable" ? words : null);
  }

  #visit(jobId) {
    this.#list.refresh();
    location.hash = `#/jobs/${encodeURIComponent(jobId)}`;
  }

  #leave() {
    this.#list.refresh();
    location.hash = "#/";
  }
}

function jobOf(hash) {
  const match = /^#\/jobs\/(.+)$/.exec(hash);
  if (!match) return null;
  try {
    return decodeURIComponent(match[1]);
  } catch {
    return match[1]; // typed by hand, no valid encoding: the service says that there is no such job
  }
}

new Page().start();
