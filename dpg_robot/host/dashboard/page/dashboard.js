"use strict";
// Everything that comes from the server is put on the page as text, never as HTML.

const FRESH_S = 6;          // older figures of something that runs are marked
const SVG = "http://www.w3.org/2000/svg";
const FIRST = ["return/simulation", "judge/td_error", "judge/denoising_error", "judge/advantage", "denoiser/loss", "baseline/loss"];
const find = (id) => document.getElementById(id);

let clockOffset = 0;        // of the host's clock to this one, s
let lastHeard = null;
let features = {};
let rollbackTo = null;
const shown = new Map();    // what each part of the page shows, so that only what changed is drawn again

// ---- small pieces ----

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value; else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(id, values, draw) {
  const text = JSON.stringify(values);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  const place = find(id);
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  const open = new Set([...place.querySelectorAll("details[open]")].map((each) => each.id));
  place.replaceChildren(...[draw(values)].flat().filter((each) => each !== null));
  for (const each of place.querySelectorAll("details")) each.open = open.has(each.id);
  if (focused && find(focused)) find(focused).focus();
}

function known(value, unit = "") {
  return value === null || value === undefined || value === "" ? element("span", {class: "soft"}, "unknown") : `${value}${unit}`;
}

function rounded(value, digits = 3) {
  return value === null || value === undefined ? null : Number(value.toPrecision(digits)).toLocaleString(undefined, {maximumSignificantDigits: digits});
}

function bytes(count) {
  if (count === null || count === undefined) return null;
  if (count < 1000) return `${count} B`;
  return count < 1e6 ? `${(count / 1e3).toFixed(1)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

// A moment in the zone of the one who looks, with its age, which goes on counting. With a limit, it shows when it is too old.
function moment(seconds, limit = Infinity) {
  if (seconds === null || seconds === undefined) return element("span", {class: "soft"}, "unknown");
  const made = element("time", {"data-seconds": seconds, "data-limit": limit, datetime: isoTime(seconds)});
  tell(made);
  return made;
}

function isoTime(seconds) {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString();
}

function tell(made) {
  const seconds = Number(made.dataset.seconds);
  const age = Date.now() / 1000 + clockOffset - seconds;
  const date = new Date(seconds * 1000);
  const clock = Math.abs(age) < 20 * 3600 ? date.toLocaleTimeString() : date.toLocaleString();
  made.textContent = `${clock} (${inWords(age)})`;
  made.classList.toggle("stale", age > Number(made.dataset.limit));
}

function inWords(age) {
  if (age < -2) return `in ${inWords(-age).replace(" ago", "")}`;
  if (age < 100) return `${Math.max(0, Math.round(age))} s ago`;
  if (age < 6000) return `${Math.round(age / 60)} min ago`;
  return age < 48 * 3600 ? `${Math.round(age / 3600)} h ago` : `${Math.round(age / 86400)} days ago`;
}

function table(titles, rows, caption) {
  if (!rows.length) return element("p", {class: "soft"}, "none");
  const head = titles.map((title) => element("th", {scope: "col"}, title));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, ...[cell].flat()))));
  return element("table", {"aria-label": caption}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

function problem(text) {
  return text ? element("p", {class: "bad"}, text) : null;
}

// ---- the parts ----

function drawReceiver({receiver, problem: logsProblem}) {
  if (logsProblem) return element("span", {class: "bad"}, logsProblem);
  if (!receiver) return element("span", {class: "soft"}, "no logs are looked at (--logs)");
  if (receiver.state === "missing") return element("span", {class: "soft"}, "no receiver writes this store; logs come as files");
  const fine = receiver.fresh && receiver.state === "connected";
  return [
    element("span", {class: fine ? "good" : "bad"}, receiver.fresh ? `receiver ${receiver.state}` : `receiver does not run (it was ${receiver.state})`),
    ", ", moment(receiver.told_s, FRESH_S), `; waiting in the server: ${receiver.queue_depth ?? "unknown"} pieces`,
    ...receiver.problems.map((text) => element("div", {class: "bad"}, text)),
  ];
}

function drawRobots(robots) {
  const titles = ["robot", "link", "last seen", "waits on the robot", "acknowledged", "stored", "loop", "rate", "lateness p50 / p99", "run"];
  return table(titles, robots.map((robot) => {
    const figure = (...parts) => element("span", robot.fresh ? {} : {class: "stale", title: "as it was when last seen"}, ...parts);
    return [
      [element("strong", {}, robot.name), problem(robot.problem)],
      element("span", {class: robot.link_ok ? "good" : "bad"}, robot.link),
      moment(robot.last_seen_s, FRESH_S),
      robot.queue_bytes === null ? known(null) : [bytes(robot.queue_bytes), " ", element("small", {class: "soft"}, moment(robot.queue_told_s, FRESH_S))],
      figure(known(robot.acknowledged_sequence)), figure(known(robot.stored_sequence)),
      robot.state === "fault" ? element("span", {class: "bad"}, "fault") : figure(known(robot.state)),
      robot.timing ? figure(`${rounded(robot.timing.rate_hz, 4)} of ${rounded(robot.wanted_rate_hz, 4)} Hz`) : known(null),
      robot.timing ? figure(`${rounded(robot.timing.p50_us)} / ${rounded(robot.timing.p99_us)} µs`) : known(null),
      [known(robot.run), element("div", {class: "soft"}, robot.task)],
    ];
  }), "robots");
}

function drawFaults(robots) {
  return table(["robot", "faults", "safety layers that acted", "records looked at"], robots.map((robot) => [
    robot.name,
    robot.faults.length
      ? element("ul", {}, ...robot.faults.map((fault) => element("li", {class: "bad"}, moment(fault.wall_s), fault.flags ? `: ${fault.flags}` : ": no layer acted just before")))
      : element("span", {class: "good"}, "none"),
    Object.entries(robot.safety).map(([layer, count]) => `${layer} ${count}`).join(", ") || "none",
    [`${robot.watched_records}, since `, moment(robot.watched_since_s)],
  ]), "faults");
}

function drawLearning(learning) {
  if (!learning) return element("p", {class: "soft"}, "no service is looked at (--learning)");
  const running = ["learning", "waiting", "judging"].includes(learning.state);
  const figures = [
    ["state", element("span", {class: running ? "good" : "warn"}, known(learning.state))],
    ["said", moment(learning.told_s, running ? 60 : Infinity)],
    ["updates", known(learning.updates)],
    ["candidates", known(learning.candidate)],
    ...Object.entries(learning.transitions ?? {}).map(([name, count]) => [`transitions: ${name.replaceAll("_", " ")}`, String(count)]),
    ...Object.entries(learning.robots ?? {}).map(([name, count]) => [`from ${name}`, String(count)]),
  ];
  const list = element("dl", {class: "figures"}, ...figures.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  return [problem(learning.problem), learning.error ? element("p", {class: "bad"}, learning.error) : null, list];
}

function drawModels(models) {
  if (!models) return element("span", {class: "soft"}, "no model store is looked at (--store)");
  return [
    `${models.passed} passed, ${models.rejected} rejected; robots should run `,
    models.current_policy ? element("code", {}, models.current_policy) : "nothing",
    models.problem ? element("span", {class: "bad"}, ` ${models.problem}`) : null,
  ].filter((each) => each !== null);
}

function drawVersions({versions, rollback}) {
  return table(["version", "gate", "reasons", "judged", "policy", ""], versions.map((version) => {
    const verdict = version.passed === null ? ["unreadable", "bad"] : version.passed ? ["passed", "good"] : ["rejected", "warn"];
    const failed = version.reasons.filter((reason) => !reason.startsWith("ok"));
    const button = element("button", {type: "button", id: `roll-back-${version.number}`, "aria-haspopup": "dialog"}, "Roll back");
    button.setAttribute("aria-label", `Roll back to version ${version.number}`);
    button.addEventListener("click", () => askRollback(version.number));
    return [
      String(version.number),
      element("span", {class: verdict[1]}, verdict[0]),
      element("details", {id: `reasons-${version.number}`},
        element("summary", {}, failed.length ? failed.join("; ") : `all ${version.reasons.length} conditions hold`),
        element("ul", {}, ...version.reasons.map((reason) => element("li", {}, reason)))),
      moment(version.judged_s),
      element("code", {}, version.policy_id),
      version.is_current ? element("strong", {class: "good"}, "current") : version.passed && rollback ? button : "",
    ];
  }), "versions");
}

function drawReleases(releases) {
  return table(["release", "when", "reason", "for", "policy", "signature"], releases.map((release) => [
    String(release.number), moment(release.released_s), release.reason, release.robots.join(", ") || "all that it fits",
    element("code", {}, release.policy_id),
    element("span", {class: {right: "good", "not checked": "soft"}[release.signature] ?? "bad"}, release.signature),
  ]), "releases");
}

// ---- charts ----

// One or more lines over a common axis; each line is [name, [[x, y], ...]].
function chart(title, lines, {isTime = false, unit = ""} = {}) {
  const points = lines.flatMap(([, values]) => values);
  const newest = lines.map(([name, values]) => `${name ? name + " " : ""}${values.length ? rounded(values.at(-1)[1]) : "?"}${unit}`);
  const figure = element("figure", {}, element("figcaption", {}, element("h3", {}, title),
    element("span", {}, ...newest.map((text, index) => element("span", {class: `key-${index + 1}`}, index ? `, ${text}` : text)))));
  if (!points.length) return figure;
  const [width, height, left, bottom] = [300, 130, 50, 16];
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const [x0, x1] = range(xs, isTime ? 1 : 0.5), [y0, y1] = range(ys, Math.abs(ys[0]) * 0.05 || 0.5);
  const toX = (x) => left + (x - x0) / (x1 - x0) * (width - left - 6);
  const toY = (y) => height - bottom - (y - y0) / (y1 - y0) * (height - bottom - 8);
  const label = `${title}: newest ${newest.join(", ")}; from ${rounded(Math.min(...ys))} to ${rounded(Math.max(...ys))}${unit}, ${points.length} points`;
  const made = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label});
  for (const y of [y0, (y0 + y1) / 2, y1]) {
    made.append(svg("line", {x1: left, x2: width - 6, y1: toY(y), y2: toY(y), class: "axis"}));
    made.append(svg("text", {x: left - 4, y: toY(y) + 3, "text-anchor": "end"}, rounded(y)));
  }
  for (const [x, anchor] of [[x0, "start"], [x1, "end"]]) {
    made.append(svg("text", {x: toX(x), y: height - 3, "text-anchor": anchor}, isTime ? new Date(x * 1000).toLocaleTimeString() : rounded(x, 6)));
  }
  lines.forEach(([, values], index) => {
    made.append(svg("polyline", {class: `curve-${index + 1}`, points: values.map(([x, y]) => `${toX(x).toFixed(1)},${toY(y).toFixed(1)}`).join(" ")}));
    if (values.length < 40) {
      for (const [x, y] of values) made.append(svg("circle", {class: `curve-${index + 1}`, cx: toX(x).toFixed(1), cy: toY(y).toFixed(1), r: 1.8}));
    }
  });
  figure.append(made);
  return figure;
}

function range(values, least) {
  const low = Math.min(...values), high = Math.max(...values);
  return high - low > 1e-12 * Math.max(1, Math.abs(high)) ? [low, high] : [low - least, high + least];
}

function drawCurves(curves) {
  show("timing-charts", curves.timing, (timing) => Object.entries(timing).filter(([, points]) => points.length > 1).map(([robot, points]) =>
    chart(`${robot}: lateness`, [["p50", points.map((each) => [each[0], each[2]])], ["p99", points.map((each) => [each[0], each[3]])]], {isTime: true, unit: " µs"})));
  show("learning-charts", curves.learning, (learning) => {
    const place = (name) => (FIRST.indexOf(name) + FIRST.length) % FIRST.length + (FIRST.includes(name) ? 0 : FIRST.length);
    const names = Object.keys(learning).sort((a, b) => place(a) - place(b) || a.localeCompare(b));
    return names.map((name) => chart(name, [["", learning[name]]]));
  });
}

// ---- what comes from the server ----

function take(status) {
  clockOffset = status.now_s - Date.now() / 1000;
  lastHeard = status.now_s;
  features = status.features;
  show("receiver", {receiver: status.receiver, problem: status.logs_problem}, drawReceiver);
  show("robot-table", status.robots, drawRobots);
  show("faults", status.robots.map(({name, faults, safety, watched_records, watched_since_s}) =>
    ({name, faults, safety, watched_records, watched_since_s})), drawFaults);
  show("learning", status.learning, drawLearning);
  show("models", status.models && {...status.models, versions: null, releases: null}, drawModels);
  show("versions", {versions: status.models?.versions ?? [], rollback: features.rollback}, drawVersions);
  show("releases", status.models?.releases ?? [], drawReleases);
  showView();
  tellConnection(true);
}

function tellConnection(isThere) {
  document.body.classList.toggle("lost", !isThere);
  const place = find("connection");
  const key = isThere ? "there" : `lost ${lastHeard}`;
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  if (isThere) place.replaceChildren("live");
  else place.replaceChildren("connection to the host lost; what is below is from ", lastHeard === null ? "never" : moment(lastHeard));
}

function listen() {
  const events = new EventSource("/api/events");
  events.addEventListener("status", (event) => take(JSON.parse(event.data)));
  events.addEventListener("curves", (event) => drawCurves(JSON.parse(event.data)));
  events.addEventListener("error", () => {
    tellConnection(false);
    if (events.readyState === EventSource.CLOSED) { // refused: the browser does not try again by itself
      setTimeout(listen, 3000);
    }
  });
}

setInterval(() => {
  for (const made of document.querySelectorAll("time[data-seconds]")) tell(made);
  if (lastHeard !== null && Date.now() / 1000 + clockOffset - lastHeard > 15) tellConnection(false);
}, 1000);

// ---- the view ----

function showView() {
  if (!features.view_port) return;
  find("view").hidden = false;
  find("view-link").href = `http://${location.hostname}:${features.view_port}`;
}

find("view-toggle").addEventListener("click", () => {
  const place = find("view-place"), button = find("view-toggle");
  const isOpen = place.childElementCount > 0;
  if (isOpen) place.replaceChildren();
  else place.append(element("iframe", {src: find("view-link").href, title: "three-dimensional view of a robot", sandbox: "allow-scripts allow-same-origin"}));
  button.setAttribute("aria-expanded", String(!isOpen));
  button.textContent = isOpen ? "Show the view" : "Hide the view";
});

// ---- rolling back ----

function askRollback(number) {
  rollbackTo = number;
  find("rollback-what").textContent = `Version ${number} becomes the current one${features.signs ? ", by a new signed release" : ""}. Robots that follow the store take it as soon as they look.`;
  find("rollback-answer").textContent = "";
  find("rollback-answer").className = "";
  find("rollback-do").disabled = false;
  find("rollback").showModal();
  find("rollback-reason").focus();
}

find("rollback-close").addEventListener("click", () => find("rollback").close());
find("rollback").addEventListener("close", () => { find("rollback-key").value = ""; });
find("rollback-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = find("rollback-answer"), button = find("rollback-do");
  button.disabled = true;
  answer.className = "";
  answer.textContent = "asking the host";
  try {
    const response = await fetch("/api/rollback", {
      method: "POST",
      headers: {"Content-Type": "application/json", "Authorization": `Bearer ${encodeURIComponent(find("rollback-key").value.trim())}`},
      body: JSON.stringify({to: rollbackTo, reason: find("rollback-reason").value}),
    });
    const said = await response.json();
    answer.className = response.ok ? "good" : "bad";
    answer.textContent = response.ok ? said.done : `refused: ${said.error}`;
    if (response.ok) find("rollback-reason").value = "";
    button.disabled = response.ok;
  } catch (error) {
    answer.className = "bad";
    answer.textContent = `the host cannot be reached: ${error.message}`;
    button.disabled = false;
  }
  find("rollback-key").value = "";
});

listen();
