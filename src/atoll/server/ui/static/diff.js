// Which words two texts share: the longest common subsequence, or nothing of it where that would take too long.

const MAX_CELLS = 4_000_000;

function words(text) {
  return text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
}

/** Parts of `b` against `a`: [{kind: "same" | "ins" | "del", text}], in order. */
export function wordDiff(a, b) {
  const old = words(a), now = words(b);
  if ((old.length + 1) * (now.length + 1) > MAX_CELLS) return [{ kind: "same", text: b }];
  const width = now.length + 1;
  const lengths = new Uint32Array((old.length + 1) * width);
  for (let i = old.length - 1; i >= 0; i--)
    for (let j = now.length - 1; j >= 0; j--)
      lengths[i * width + j] = old[i] === now[j] ? lengths[(i + 1) * width + j + 1] + 1
        : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
  const parts = [];
  const add = (kind, text) => {
    if (parts.at(-1)?.kind === kind) parts.at(-1).text += text;
    else parts.push({ kind, text });
  };
  let i = 0, j = 0;
  while (i < old.length || j < now.length) {
    if (i < old.length && j < now.length && old[i] === now[j]) { add("same", now[j]); i++; j++; }
    else if (j === now.length || (i < old.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) add("del", old[i++]);
    else add("ins", now[j++]);
  }
  return parts;
}

/** Show the difference in an element, as text alone. */
export function showDiff(element, a, b) {
  element.replaceChildren(...wordDiff(a, b).map(({ kind, text }) => {
    const part = document.createElement(kind === "same" ? "span" : kind);
    part.textContent = text;
    return part;
  }));
}
