"use strict";

// The address of this page ends in the token, which every change must carry in a header.
const token = location.pathname.split("/")[1];
const $ = (id) => document.getElementById(id);
const state = { gallery: "", items: [], total: 0, current: 0, loading: false, asked: 0 };

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Shardsieve-Token": token },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; start `shardsieve review` again");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function say(text, isProblem = false) {
  $("status").textContent = text;
  $("status").classList.toggle("problem", isProblem);
}

function tellDecided(count, before = "") {
  const text = count.toLocaleString("en");
  say(`${before}${text} decided`);
  const button = document.querySelector("[data-gallery='decided']");
  if (button) button.textContent = `Decided (${text})`;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function picture(item) {
  if (!item.image) return element("span", { className: "none", textContent: "no image" });
  const image = element("img", {
    src: `image/${item.row}`, loading: "lazy", alt: `Labelled ${item.given}`,
  });
  image.addEventListener("load", () => {
    image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < 84);
  });
  image.addEventListener("error", () => {
    image.replaceWith(element("span", { className: "none", textContent: "cannot be shown" }));
  });
  return image;
}

function mark(item) {
  if (!item.decision) return "";
  const words = { keep: "kept", drop: "dropped", relabel: `now ${item.label}` };
  return element("span", { className: `mark ${item.decision}`, textContent: words[item.decision] });
}

function card(item, at) {
  const made = element("li", { id: `item-${at}` },
    element("div", { className: "frame" }, picture(item)),
    element("div", {}, "labelled ",
      element("span", { className: "given", textContent: item.given ?? "nothing" })));
  made.setAttribute("role", "option");
  if (item.suggested && item.suggested !== item.given) {
    made.append(element("div", {}, "looks like ",
      element("span", { className: "suggested", textContent: item.suggested })));
  }
  made.append(mark(item));
  made.addEventListener("click", () => { select(at); $("items").focus(); });
  return made;
}

function redraw(at) {
  const old = $(`item-${at}`);
  if (old) old.replaceWith(card(state.items[at], at));
  select(state.current, false);
}

function fact(name, value) {
  return value === null || value === undefined || value === "" ? []
    : [element("dt", { textContent: name }), element("dd", { textContent: value })];
}

function select(at, scroll = true) {
  state.current = Math.max(0, Math.min(at, state.items.length - 1));
  for (const card of $("items").children) {
    card.setAttribute("aria-selected", String(card.id === `item-${state.current}`));
  }
  const item = state.items[state.current];
  $("detail").hidden = !item;
  $("items").removeAttribute("aria-activedescendant");
  if (!item) return;
  $("items").setAttribute("aria-activedescendant", `item-${state.current}`);
  if (scroll) $(`item-${state.current}`).scrollIntoView({ block: "nearest" });
  if ($("picture").dataset.row !== String(item.row)) {
    $("picture").dataset.row = item.row;
    $("picture").replaceChildren(picture({ ...item, loading: "eager" }));
  }
  const words = { keep: "keep", drop: "drop", relabel: `relabel as ${item.label}` };
  $("facts").replaceChildren(
    ...fact("Labelled", item.given), ...fact("Looks like", item.suggested),
    ...fact("p_clean", item.p_clean?.toFixed(4)), ...fact("Loss", item.loss?.toFixed(3)),
    ...fact("Verdict", `${item.kept ? "kept" : "not kept"} (${item.reason})`),
    ...fact("Detail", item.detail), ...fact("Decided", words[item.decision]),
    ...fact("Key", item.key), ...fact("Shard", item.shard));
  for (const name of ["keep", "drop", "relabel"]) $(name).disabled = !item.judged;
  if (state.current > state.items.length - 40) more();
}

async function more() {
  if (state.loading || state.items.length >= state.total) return;
  await load(state.items.length);
}

async function load(start) {
  const asked = ++state.asked;
  state.loading = true;
  const query = new URLSearchParams({
    gallery: state.gallery, start, label: $("class").value, reason: $("reason").value,
    text: $("text").value.trim(),
  });
  try {
    const answer = await ask(`items?${query}`);
    if (asked !== state.asked) return;
    if (!start) {
      state.items = [];
      $("items").replaceChildren();
      $("items").scrollTop = 0;
    }
    state.total = answer.total;
    for (const item of answer.items) {
      $("items").append(card(item, state.items.length));
      state.items.push(item);
    }
    $("total").textContent = `${answer.total.toLocaleString("en")} samples`;
    select(start ? state.current : 0, !start);
  } catch (error) {
    say(error.message, true);
  } finally {
    if (asked === state.asked) state.loading = false;
  }
}

async function open(name) {
  state.gallery = name;
  const about = await ask("about");
  $("galleries").replaceChildren(...about.galleries.map((gallery) => {
    const count = gallery.count.toLocaleString("en");
    const made = element("button", { type: "button", textContent: `${gallery.title} (${count})` });
    made.dataset.gallery = gallery.name;
    made.setAttribute("aria-current", String(gallery.name === name));
    made.addEventListener("click", () => open(gallery.name).catch((e) => say(e.message, true)));
    return made;
  }));
  const chosen = about.galleries.find((gallery) => gallery.name === name);
  $("explanation").textContent = chosen ? chosen.explanation : "";
  tellDecided(about.decided);
  await load(0);
  return about;
}

// Decisions are sent one after the other, in the order of the keys.
let sending = Promise.resolve();

function decide(decision, label = null) {
  const at = state.current;
  const item = state.items[at];
  if (!item || !item.judged) return;
  const before = { decision: item.decision, label: item.label };
  Object.assign(item, { decision, label });
  redraw(at);
  select(at + 1);
  sending = sending.then(async () => {
    try {
      const answer = await ask("decide", { row: item.row, key: item.key, decision, label });
      tellDecided(answer.decided);
    } catch (error) {
      Object.assign(item, before);
      if (state.items[at] === item) redraw(at);
      say(`Not saved: ${error.message}`, true);
    }
  });
}

function undo() {
  sending = sending.then(async () => {
    try {
      const answer = await ask("undo", {});
      if (!answer.undone) return say("nothing to undo");
      const at = state.items.findIndex((item) => item.key === answer.key);
      if (at >= 0) {
        const stands = answer.decision === "none" ? null : answer.decision;
        Object.assign(state.items[at], { decision: stands, label: answer.label });
        redraw(at);
        select(at);
      }
      tellDecided(answer.decided, "Undone. ");
    } catch (error) {
      say(`Not undone: ${error.message}`, true);
    }
  });
}

function askForLabel() {
  const item = state.items[state.current];
  if (!item || !item.judged) return;
  $("label").value = item.suggested && item.suggested !== item.given ? item.suggested : "";
  $("label-problem").textContent = "";
  $("dialog").showModal();
  $("label").focus();
  $("label").select();
}

function columns() {
  const cards = [...$("items").children];
  const top = cards[0]?.offsetTop;
  const next = cards.findIndex((card) => card.offsetTop !== top);
  return next > 0 ? next : Math.max(1, cards.length);
}

function onKey(event) {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if ($("dialog").open || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    k: () => decide("keep"), d: () => decide("drop"), r: askForLabel, u: undo,
    ArrowRight: () => select(state.current + 1), ArrowLeft: () => select(state.current - 1),
    ArrowDown: () => select(state.current + columns()),
    ArrowUp: () => select(state.current - columns()),
    Home: () => select(0), End: () => select(state.items.length - 1),
  };
  const action = actions[event.key];
  if (!action || (event.repeat && !event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  action();
}

async function start() {
  const about = await open("suspicious");
  about.classes.forEach((name, label) => {
    $("class").append(element("option", { value: label, textContent: name }));
    $("labels").append(element("option", { value: name }));
  });
  for (const word of about.reasons) {
    $("reason").append(element("option", { value: word, textContent: word }));
  }
  const first = about.galleries[0].name;
  if (!about.galleries.some((gallery) => gallery.name === "suspicious")) await open(first);
  const classes = new Set(about.classes);
  $("relabel-form").addEventListener("submit", (event) => {
    const label = $("label").value;
    if (!classes.has(label)) {
      event.preventDefault();
      $("label-problem").textContent = "No class has this name.";
      return;
    }
    decide("relabel", label);
  });
  $("cancel").addEventListener("click", () => $("dialog").close());
  $("dialog").addEventListener("close", () => $("items").focus());
  $("keep").addEventListener("click", () => decide("keep"));
  $("drop").addEventListener("click", () => decide("drop"));
  $("relabel").addEventListener("click", askForLabel);
  $("undo").addEventListener("click", undo);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["class", "reason"]) $(id).addEventListener("change", () => load(0));
  let typed;
  $("text").addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => load(0), 200);
  });
  $("items").addEventListener("scroll", () => {
    const list = $("items");
    if (list.scrollTop + list.clientHeight > list.scrollHeight - 600) more();
  });
  document.addEventListener("keydown", onKey);
  $("items").focus();
}

start().catch((error) => say(error.message, true));
