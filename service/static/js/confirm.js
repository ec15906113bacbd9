// Asks before something is done that cannot be taken back lightly.

import { byId, setText } from "./dom.js";

/**
 * Show the question and wait for the answer.
 * @param {{title: string, words: string, yes: string, no: string, isDanger?: boolean}} question
 * @returns {Promise<boolean>} whether it was confirmed; closing the dialog is a no
 */
export function confirmed({ title, words, yes, no, isDanger = false }) {
  const dialog = byId("confirm");
  setText(byId("confirm-title"), title);
  setText(byId("confirm-words"), words);
  setText(byId("confirm-yes"), yes);
  setText(byId("confirm-no"), no);
  byId("confirm-yes").className = isDanger ? "danger solid" : "solid";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
