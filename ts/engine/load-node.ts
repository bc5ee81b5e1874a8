import { readFileSync } from "node:fs";
import { Engine, initSync } from "../../build/wasm/vhd_wasm.js";
import { builtFile } from "./built.ts";
import type { EngineModule } from "./engine.ts";

/** Loads the engine's WebAssembly module in Node, on the main thread or in a worker. */
export function loadEngineModule(): EngineModule {
  const { memory } = initSync({ module: readFileSync(builtFile("vhd_wasm_bg.wasm")) });
  return { Engine, memory };
}
