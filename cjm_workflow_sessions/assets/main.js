// Entry of the bundle. htmx comes along for hosts that have none; a host's own copy is left alone: two would send everything twice.
if (!window.htmx) window.htmx = require("htmx.org/dist/htmx.cjs.js");
require("./manager.js");
require("./jobs.js");
