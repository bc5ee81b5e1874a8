import init, { Engine } from "../../build/wasm/vhd_wasm.js";
import type { EngineModule } from "./engine.ts";

/** Loads the engine's WebAssembly module in a browser or one of its workers, from the given address. */
export async function loadEngineModule(url: URL): Promise<EngineModule> {
  const { memory } = await init({ module_or_path: url });
  return { Engine, memory };
}
