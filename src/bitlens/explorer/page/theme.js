// Before the first paint: the theme that was chosen here last, if any; otherwise the system's.
try {
  const theme = localStorage.getItem("bitlens-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage can be switched off; the system's theme stays.
}
