import { readFileSync } from "node:fs";
import { Engine, initSync } from "../../build/wasm/vhd_wasm.js";
import { builtFile } from "./built.ts";
import type { EngineModule } from "./engine.ts";

let compiled: WebAssembly.Module | undefined;

/** The engine's WebAssembly module, compiled once. Workers that are given it share its code. */
export function compiledEngine(): WebAssembly.Module {
  compiled ??= new WebAssembly.Module(readFileSync(builtFile("vhd_wasm_bg.wasm")));
  return compiled;
}

/** Makes an instance of the engine's WebAssembly module in Node, on the main thread or in a worker. */
export function loadEngineModule(module: WebAssembly.Module = compiledEngine()): EngineModule {
  const { memory } = initSync({ module });
  return { Engine, memory };
}
