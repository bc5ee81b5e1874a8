/**
 * What each program of `build/lib` begins with: `NAME.cjs` is this file, and runs `NAME.bundle.cjs` with the bytecode that V8
 * made of it when it was built (`NAME.cache`), so that nothing is parsed and compiled at each start. This folder has only
 * that, and imports nothing of the project.
 */

import { createRequire } from "node:module";
import { type Bundle, bundleScript } from "./load.ts";

const file = import.meta.filename;
const run: Bundle = bundleScript(file.slice(0, -".cjs".length)).runInThisContext();
run(createRequire(file), file);
