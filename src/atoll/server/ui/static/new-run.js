// A file goes to the server as the body of a request, and the page that the server names comes next.

import { notify, send } from "./app.js";

const drop = document.getElementById("drop");
const input = document.getElementById("file");

async function upload(file) {
  const told = document.getElementById("uploading");
  told.textContent = `uploading ${file.name} …`;
  input.disabled = true;
  try {
    const answer = await send(`/ui/admin/uploads?title=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
    const text = await answer.text();
    if (answer.ok) { location.href = JSON.parse(text).next; return; }
    told.textContent = "";
    notify(new DOMParser().parseFromString(text, "text/html").body.textContent.trim() || `the server answered ${answer.status}`);
  } catch {
    told.textContent = "";
    notify("the file could not be sent");
  }
  input.disabled = false;
  input.value = "";
}

if (drop) {
  input.addEventListener("change", () => { if (input.files.length) upload(input.files[0]); });
  for (const kind of ["dragover", "dragenter"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
  });
}
