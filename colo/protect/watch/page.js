"use strict";
(() => {
const at = id => document.getElementById(id);
const make = (tag, text, cls) => {
	const e = document.createElement(tag);
	if (text !== undefined) e.textContent = text;
	if (cls) e.className = cls;
	return e;
};
const say = (e, text) => { if (e.textContent !== text) e.textContent = text; };
const STALE = 3000, DEAD = 6000;

let source, heard = 0, began = Date.now(), wide = 0, boot = "", token = "", last = null, busy = false, retry = 0;

const room = () => Math.max(280, Math.floor(at("picture").clientWidth));

// connect asks for the state, now and whenever it changes. A browser gives up for
// good after some answers, so this does not leave it to the browser.
function connect() {
	if (source) source.close();
	clearTimeout(retry);
	wide = room();
	source = new EventSource("live?width=" + wide);
	const mine = source;
	mine.addEventListener("state", e => {
		if (mine !== source) return;
		heard = Date.now();
		show(JSON.parse(e.data));
		fresh();
	});
	mine.onerror = () => {
		if (mine !== source) return;
		mine.close();
		clearTimeout(retry);
		retry = setTimeout(connect, 700);
	};
	began = Date.now();
}

// fresh says when what is shown is old.
function fresh() {
	const quiet = Date.now() - (heard || began);
	const stale = quiet > STALE;
	document.documentElement.classList.toggle("stale", stale);
	const banner = at("stale");
	if (stale) {
		say(banner, heard ? "No news since " + clock(new Date(heard)) + ": what is shown is old. Trying again …" : "No connection. Trying again …");
	}
	banner.hidden = !stale;
	if (last) buttons(last);
}

setInterval(() => {
	fresh();
	if (last) since(last);
	// A connection that is dead without an end is not noticed by the browser.
	if (Date.now() - Math.max(heard, began) > DEAD) connect();
}, 500);

new ResizeObserver(() => {
	if (wide && Math.abs(room() - wide) > 24) connect();
}).observe(at("picture"));

const clock = d => d.toLocaleTimeString([], {hour12: false});

// moment is the clock, and the date of what was not today.
const moment = d => (d.toDateString() === new Date().toDateString() ? "" : d.toLocaleDateString() + " ") + clock(d);

function since(s) {
	let t = Math.max(0, Math.round((Date.now() - Date.parse(s.since)) / 1000));
	const parts = [[86400, " d"], [3600, " h"], [60, " min"], [1, " s"]], words = [];
	for (const [n, unit] of parts) {
		if (t >= n || (n === 1 && !words.length)) words.push(Math.floor(t / n) + unit);
		t %= n;
	}
	say(at("since"), "for " + words.slice(0, 2).join(" "));
}

function facts(list, all) {
	list.replaceChildren(...all.map(f => {
		const d = make("div");
		d.append(make("dt", f.name), make("dd", f.value));
		return d;
	}));
}

function side(e, s, title, runs) {
	e.classList.toggle("runs", runs);
	const list = make("dl");
	for (const f of s.facts) list.append(make("dt", f.name), make("dd", f.value));
	e.replaceChildren(make("h3", s.host ? title + ": " + s.host : title), make("p", (s.role === "none" ? "no side of a session" : s.role) + (runs ? ", runs the guest" : ""), "role"), list);
}

function rows(body, all, width, cells) {
	if (!all.length) {
		const c = make("td", "none so far", "none");
		c.colSpan = width;
		const r = make("tr");
		r.append(c);
		body.replaceChildren(r);
		return;
	}
	body.replaceChildren(...all.map(v => {
		const r = make("tr");
		r.append(...cells(v));
		return r;
	}));
}

function show(s) {
	if (boot && boot !== s.boot && at("outcome")) say(at("outcome"), "The process was started again.");
	boot = s.boot;
	token = s.token || "";
	last = s;
	document.title = s.state + " – " + s.guest;
	say(at("pill"), s.state);
	at("pill").className = "pill " + s.tone;
	say(at("sentence"), s.sentence);
	say(at("reason"), s.reason ? "Because: " + s.reason : "");
	since(s);
	const mine = ["alone", "synchronising", "protected", "paused", "cancelled"].includes(s.state);
	side(at("here"), s.here, "This host", mine);
	side(at("there"), s.there, "The other host", s.state === "following");
	say(at("link"), s.there.role === "secondary" ? "⟶" : s.there.role === "primary" ? "⟵" : "·  ·  ·");
	at("copies").replaceChildren(...s.copies.map(c => {
		const d = make("div", undefined, "copy"), bar = make("progress"), label = make("label", c.what + ": " + c.percent + " %, " + c.text);
		bar.max = 100;
		bar.value = c.percent;
		label.append(bar);
		d.append(label);
		return d;
	}));
	say(at("error"), s.error ? "Last error" + (s.errorAt ? ", at " + moment(new Date(s.errorAt)) : "") + ": " + s.error : "");
	at("error").hidden = !s.error;
	facts(at("figures"), s.figures);
	at("picture").innerHTML = s.picture; // drawn, and escaped, by the server
	const list = at("events");
	list.replaceChildren(...(s.events.length ? s.events.map(e => {
		const li = make("li", undefined, e.tone), t = make("time", clock(new Date(e.at)));
		t.dateTime = e.at;
		li.append(t, make("b", e.name));
		if (e.text) li.append(make("span", e.text));
		return li;
	}) : [make("li", "nothing so far", "soft")]));
	rows(at("flows"), s.flows, 3, f => [make("td", f.flow), make("td", String(f.count), "n"), make("td", f.apart ? "not compared for now: " + f.reason : f.reason)]);
	rows(at("checkpoints"), s.checkpoints, 7, c => [make("td", String(c.epoch), "n"), make("td", c.cause), ...[c.pause, c.transfer, c.commit, String(c.pages), c.bytes].map(v => make("td", v, "n"))]);
}

// buttons keeps those that are there, so that none loses the focus.
function buttons(s) {
	const bar = at("actions");
	if (!bar) return;
	const off = busy || document.documentElement.classList.contains("stale");
	const all = s.actions || [];
	for (const b of [...bar.children]) {
		if (!all.some(a => a.verb === b.dataset.verb)) b.remove();
	}
	all.forEach((a, i) => {
		let b = [...bar.children].find(e => e.dataset.verb === a.verb);
		if (!b) {
			b = make("button", a.label, a.danger ? "danger" : "");
			b.type = "button";
			b.dataset.verb = a.verb;
			b.addEventListener("click", () => ask(a.verb));
			bar.insertBefore(b, bar.children[i] || null);
		}
		b.disabled = off || !a.enabled;
		b.title = a.enabled ? "" : a.why;
	});
}

function ask(verb) {
	const a = (last.actions || []).find(x => x.verb === verb), d = at("confirm");
	if (!a || busy) return;
	say(at("c-title"), a.label + "?");
	say(at("c-text"), a.confirm);
	say(at("c-yes"), a.label);
	at("c-yes").className = a.danger ? "danger" : "";
	d.returnValue = "no";
	d.onclose = () => { if (d.returnValue === "yes") order(a); };
	d.showModal();
	at("c-no").focus();
}

async function order(a) {
	busy = true;
	buttons(last);
	say(at("outcome"), a.label + " …");
	try {
		const r = await fetch("act", {method: "POST", headers: {"X-Lockstep-Token": token}, body: new URLSearchParams({verb: a.verb})});
		const why = r.ok ? "" : (await r.text()).trim();
		say(at("outcome"), r.ok ? a.label + ": done." : a.label + ": refused. " + why);
	} catch (e) {
		say(at("outcome"), a.label + ": no answer. Whether it was done is not known.");
	}
	busy = false;
	if (last) buttons(last);
}

connect();
})();
