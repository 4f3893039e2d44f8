// Blind votes. The page is told queries and opaque ids; what it voted on, once the vote is stored.
"use strict";

const part = (id) => document.getElementById(id);
const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "tie", t: "tie", s: "skip" };
const annotator = new URLSearchParams(location.search).get("annotator");
let current = null; // the comparison that is asked
let loaded = false; // whether both of its clips are there to be seen
let sending = false;

function stage(side) {
  const element = document.createElement(current.moving[side] ? "video" : "img");
  const ready = new Promise((resolve, reject) => {
    element.addEventListener(current.moving[side] ? "canplay" : "load", resolve, { once: true });
    element.addEventListener("error", reject, { once: true });
  });
  if (current.moving[side]) Object.assign(element, { muted: true, loop: true, autoplay: true, playsInline: true });
  else element.alt = side;
  element.src = `vote/clips/${current.id}/${side}?annotator=${encodeURIComponent(annotator)}`;
  part(side).replaceChildren(element);
  return ready.then(() => {
    const size = Math.max(element.naturalWidth ?? 0, element.videoWidth ?? 0);
    element.classList.toggle("tiny", size <= 160);
    return element;
  });
}

async function show(asked) {
  current = asked.comparison;
  loaded = false;
  part("count").textContent = `${asked.done} of ${asked.total} compared`;
  part("bar").max = asked.total || 1;
  part("bar").value = asked.done;
  part("ask").hidden = !current;
  part("finished").hidden = Boolean(current);
  if (!current) return;
  part("wish").textContent = current.query;
  part("ask").dataset.comparison = current.id;
  const mine = current.id;
  try {
    const clips = await Promise.all(["left", "right"].map(stage));
    clips.filter((clip) => clip.play).forEach((clip) => { clip.currentTime = 0; clip.play(); });
    loaded = current?.id === mine;
    part("ask").toggleAttribute("data-loaded", loaded);
  } catch {
    part("trouble").textContent = "A clip cannot be shown: skip this one.";
  }
}

async function answer(response) {
  const said = await response.json();
  if (!response.ok) throw new Error(said.error ?? response.statusText);
  return said;
}

async function vote(choice) {
  if (!current || sending || (!loaded && choice !== "skip")) return;
  sending = true;
  part("trouble").textContent = "";
  const picked = { left: ["left"], right: ["right"], tie: ["left", "right"], skip: [] }[choice];
  picked.forEach((side) => part(side).toggleAttribute("data-picked", true));
  try {
    const stored = await fetch("votes", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ annotator, comparison_id: current.id, choice }),
    }).then(answer);
    part("told").textContent = `You chose ${choice}. Left was ${stored.left}, right was ${stored.right}.`;
    part("ask").removeAttribute("data-loaded");
    await show(stored.next);
  } catch (error) {
    part("trouble").textContent = `Not stored: ${error.message}`;
  } finally {
    sending = false;
    picked.forEach((side) => part(side).toggleAttribute("data-picked", false));
  }
}

async function begin() {
  try {
    const asked = await fetch(`vote/next?annotator=${encodeURIComponent(annotator)}`).then(answer);
    part("who").hidden = true;
    await show(asked);
  } catch (error) {
    part("annotator").value = annotator;
    part("refused").textContent = error.message;
  }
}

document.querySelectorAll("[data-choice]").forEach((button) => {
  button.addEventListener("click", () => { button.blur(); vote(button.dataset.choice); });
});
document.addEventListener("keydown", (event) => {
  const choice = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (!choice || !current || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  vote(choice);
});
if (part("who") && annotator !== null) begin();
