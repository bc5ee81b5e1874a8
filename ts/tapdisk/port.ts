import { createRequire } from "node:module";
import type * as native from "../../build/lib/port.d.ts";
import { builtFile } from "../engine/built.ts";

/** The back ends of the port, and the choice of the best one that the kernel permits. */
export const backends = ["auto", "uring", "threads"] as const;

/** What executes file operations: io_uring, a thread pool, or whichever is possible. */
export type Backend = (typeof backends)[number];

/** The native module. */
export type PortModule = typeof native;

/** The native port: files, rings and sockets of one data plane. Only the thread that made it may use it. */
export type Port = native.Port;

let loaded: PortModule | undefined;

/** Loads the native module. */
export function portModule(): PortModule {
  loaded ??= createRequire(import.meta.url)(builtFile("port.node")) as PortModule;
  return loaded;
}
