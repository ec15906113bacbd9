// Runs before the first paint, so that a chosen theme does not flash in the other one. A plain script:
// modules wait until the document is parsed.
try {
  const theme = localStorage.getItem("mics-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be turned off; the system's theme is used then.
}
