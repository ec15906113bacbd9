// Logging in and out. Nothing of it is seen where the service asks for no token.

import { ApiError, getSession, logIn, logOut } from "./api.js";
import { byId, setText, showMessage } from "./dom.js";

export class Session {
  #onChanged;

  /** @param {(isIn: boolean) => void} onChanged called when a visitor came in, or is out */
  constructor(onChanged) {
    this.#onChanged = onChanged;
    byId("login-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#logIn();
    });
    byId("logout").addEventListener("click", () => this.#logOut());
  }

  /** Ask who the visitor is. Returns whether the service may be used. */
  async start() {
    try {
      this.#show(await getSession());
    } catch (error) {
      if (error.status === 401) return false;
      // A service without sessions needs none; one that does not answer is asked again by the views.
    }
    return true;
  }

  /** The visitor is not, or no longer, known. */
  expire() {
    byId("session").hidden = true;
  }

  #show({ name, role, requires_token: isNeeded }) {
    byId("session").hidden = !isNeeded;
    setText(byId("session-name"), role ? `${name} (${role})` : name);
    byId("layout").dataset.role = role ?? "";
  }

  async #logIn() {
    const field = byId("login-token");
    const token = field.value.trim();
    if (!token) {
      this.#refuse("Enter a token.");
      return;
    }
    try {
      this.#show(await logIn(token));
    } catch (error) {
      this.#refuse(error instanceof ApiError ? error.message : String(error));
      return;
    }
    field.value = "";
    this.#refuse(null);
    this.#onChanged(true);
  }

  #refuse(words) {
    const field = byId("login-token");
    showMessage(byId("login-error"), words);
    field.setAttribute("aria-invalid", String(Boolean(words)));
    if (words) field.focus();
  }

  async #logOut() {
    try {
      await logOut();
    } catch {
      // Whatever it said, the next request tells whether the visitor is still known.
    }
    this.expire();
    this.#onChanged(false);
  }
}
