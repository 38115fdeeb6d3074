// The Try page: answers as they come, the state in the address, votes. Answers are text and stay text.
import { notify, send } from "./app.js";
import { showDiff } from "./diff.js";

const form = document.getElementById("try");
const answers = document.getElementById("answers");
const vote = document.getElementById("vote");
const status = document.getElementById("status");
const run = form.querySelector("[data-run]");
const stop = form.querySelector("[data-stop]");
const RUNNING = "atoll.running"; // in this tab: the address whose answers a reload would cut off
const MAX_QUERY = 6000; // longer ones go behind the #, which is not sent to the server
let running = null;
let isLeaving = false;
for (const name of ["beforeunload", "pagehide"]) addEventListener(name, () => { isLeaving = true; });

function entries() {
  return [...new FormData(form)].filter(([name, value]) => value !== "" || name.startsWith("in."));
}

function address() {
  const query = new URLSearchParams(entries());
  for (const [name, value] of new FormData(document.querySelector(".search"))) if (value && name !== "adapter") query.append(name, value);
  const text = query.toString();
  if (text.length <= MAX_QUERY) return `?${text}`;
  const short = new URLSearchParams([...query].filter(([name]) => !name.startsWith("in.") && name !== "prompt"));
  const long = new URLSearchParams([...query].filter(([name]) => name.startsWith("in.") || name === "prompt"));
  return `?${short}#${long}`;
}

function keepAddress() { history.replaceState(null, "", address()); }

function restoreLongInputs() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = form.elements.namedItem(name);
    if (field instanceof HTMLTextAreaElement) field.value = value;
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (held + value).split("\n\n");
    held = frames.pop();
    for (const frame of frames) yield JSON.parse(frame.slice(6));
  }
}

function column(label, isFirst) {
  const article = document.getElementById("answer").content.cloneNode(true).firstElementChild;
  article.querySelector("h2").textContent = label;
  article.querySelector(".text").setAttribute("aria-label", label);
  article.classList.add("running");
  article.classList.toggle("first", isFirst);
  answers.append(article);
  return { article, text: "", isDone: false };
}

function part(one, selector) { return one.article.querySelector(selector); }

function figures(end) {
  const rate = end.tokens_per_s === null ? "" : ` · ${end.tokens_per_s} tokens/s`;
  return `${Math.round(end.first_token_s * 1000)} ms to the first token${rate} · ${end.num_new_tokens} tokens`;
}

function showEnd(one, end) {
  one.isDone = true;
  one.article.classList.remove("running");
  if (end.first_token_s === undefined) return;
  part(one, ".figures").textContent = figures(end);
  if (end.finish_reason === "length") part(one, ".figures").append(", cut off there");
}

function showError(one, message) {
  one.isDone = true;
  one.article.classList.remove("running");
  const problem = document.createElement("p");
  problem.className = "problem";
  problem.setAttribute("role", "alert");
  problem.textContent = message;
  one.article.append(problem);
}

/** The first column is what the others are compared with. */
function compare(columns) {
  const [first, ...others] = columns;
  for (const one of others) {
    if (!first.text || !one.text) continue;
    if (first.text.trim() === one.text.trim()) part(one, ".note").textContent = `the same as ${part(first, "h2").textContent}`;
    else showDiff(part(one, ".text"), first.text, one.text);
  }
}

function take(message, race) {
  if (message.type === "start") {
    race.columns = message.labels.map((label, index) => column(label, index === 0));
    race.duel = message.duel;
    answers.hidden = false;
    answers.scrollIntoView({ block: "nearest" });
  } else if (message.type === "done") race.isDone = true;
  else {
    const one = race.columns[message.column];
    if (message.type === "text") {
      one.text += message.text;
      part(one, ".text").append(message.text);
    } else if (message.type === "end") showEnd(one, message);
    else showError(one, message.message);
  }
}

async function start() {
  if (running) running.abort();
  const controller = (running = new AbortController());
  const race = { columns: [], duel: null, isDone: false };
  answers.replaceChildren();
  vote.hidden = true;
  keepAddress();
  sessionStorage.setItem(RUNNING, location.href);
  stop.hidden = false;
  answers.setAttribute("aria-busy", "true");
  status.textContent = "running";
  try {
    const body = new URLSearchParams(entries());
    const response = await send("/ui/answers", { method: "POST", body, signal: controller.signal });
    if (response.status === 401) location.reload();
    if (!response.ok) throw new Error(await messageOf(response));
    for await (const message of events(response)) take(message, race);
    if (!race.isDone) throw new Error("the connection was lost");
    status.textContent = "done";
  } catch (error) {
    if (running !== controller) return; // another run has begun
    status.textContent = error.name === "AbortError" ? "stopped" : "";
    if (error.name !== "AbortError") showFailure(race, error.message);
  } finally {
    if (running === controller) finish(race);
  }
}

function showFailure(race, message) {
  if (!race.columns.length) { race.columns = [column("No answer", true)]; answers.hidden = false; }
  for (const one of race.columns) if (!one.isDone) showError(one, message);
}

async function messageOf(response) {
  const text = await response.text();
  if (response.headers.get("content-type")?.includes("json")) return JSON.parse(text).error;
  return new DOMParser().parseFromString(text, "text/html").body.textContent.trim();
}

function finish(race) {
  running = null;
  stop.hidden = true;
  if (!isLeaving) sessionStorage.removeItem(RUNNING);
  answers.setAttribute("aria-busy", "false");
  for (const one of race.columns) one.article.classList.remove("running");
  const isComplete = race.isDone && race.columns.every((one) => !one.article.querySelector(".problem"));
  if (race.duel && isComplete) askForVote(race);
  else if (!race.duel) compare(race.columns);
}

function askForVote(race) {
  vote.hidden = false;
  for (const button of vote.querySelectorAll("button")) {
    button.onclick = () => sendVote(race, button.dataset.vote);
  }
}

async function sendVote(race, winner) {
  vote.hidden = true;
  const response = await send("/ui/votes", { method: "POST", body: new URLSearchParams({ duel: race.duel, winner }) });
  if (!response.ok) { notify(await messageOf(response)); return; }
  const { labels, ends } = await response.json();
  race.columns.forEach((one, index) => {
    const letter = "ab"[index];
    part(one, "h2").textContent = labels[index] + (letter === winner ? " ✓" : "");
    showEnd(one, ends[index]);
  });
  compare(race.columns);
  status.textContent = "your vote is kept";
}

function filterPicker() {
  const search = document.querySelector(".search");
  const text = search.elements.q.value.toLowerCase(), category = search.elements.category.value;
  for (const section of document.querySelectorAll(".groups section[data-category]")) {
    let numShown = 0;
    for (const item of section.querySelectorAll("li")) {
      item.hidden = !item.dataset.text.toLowerCase().includes(text);
      numShown += !item.hidden;
    }
    section.hidden = numShown === 0 || (category !== "" && category !== section.dataset.category);
  }
  keepAddress();
}

restoreLongInputs();
run.disabled = false;
form.addEventListener("submit", (event) => { event.preventDefault(); if (form.reportValidity()) start(); });
form.addEventListener("input", keepAddress);
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
});
stop.addEventListener("click", () => running?.abort());
addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
document.querySelector(".search").addEventListener("input", filterPicker);
document.querySelector(".search").addEventListener("submit", (event) => event.preventDefault());
if (matchMedia("(max-width: 860px)").matches) document.querySelector("[data-picker]").open = false;
if (sessionStorage.getItem(RUNNING) === location.href) start(); // a reload has cut it off
