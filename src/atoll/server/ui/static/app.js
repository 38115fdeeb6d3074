// What every page does: the theme, texts to copy, and the token that our own requests carry.

const csrf = document.querySelector('meta[name="csrf"]').content;

/** fetch with the token of this page. */
export function send(path, options = {}) {
  const headers = { "x-atoll-csrf": csrf, ...options.headers };
  return fetch(path, { ...options, headers, credentials: "same-origin", redirect: "error" });
}

/** Say something to everybody, screen readers among them. */
export function notify(text) {
  const notice = document.getElementById("notice");
  notice.textContent = text;
  clearTimeout(notify.timer);
  notify.timer = setTimeout(() => { notice.textContent = ""; }, 6000);
}

document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["x-atoll-csrf"] = csrf;
});

document.addEventListener("htmx:responseError", (event) => {
  const { status, responseText } = event.detail.xhr;
  if (status === 401) location.reload(); // the session is over: the server leads to the login
  const parsed = new DOMParser().parseFromString(responseText, "text/html");
  notify(parsed.body.textContent.trim().slice(0, 300) || `the server answered ${status}`);
});

document.addEventListener("htmx:sendError", () => notify("the server does not answer"));

function showControls(root) {
  for (const element of root.querySelectorAll("[data-copy][hidden], [data-theme-toggle][hidden]")) element.hidden = false;
}
showControls(document);
document.addEventListener("htmx:afterSwap", (event) => showControls(event.detail.elt));

document.addEventListener("click", async (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    try {
      await navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent);
      notify("copied");
    } catch {
      notify("the browser does not allow to copy: select the text instead");
    }
  }
  if (event.target.closest("[data-theme-toggle]")) {
    const root = document.documentElement;
    const prefersDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : prefersDark;
    root.dataset.theme = isDark ? "light" : "dark";
    document.cookie = `atoll_theme=${root.dataset.theme}; path=/ui; max-age=31536000; samesite=strict`;
    document.dispatchEvent(new Event("atoll:theme"));
  }
});

// A page that was open in another tab when its session ended, or its server began anew, has an old token.
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
