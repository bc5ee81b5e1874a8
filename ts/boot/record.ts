/**
 * For the build, as `node --import`: when a thread of a program ends, the bytecode of what it ran is written to where
 * `load.ts` looks for it. Functions that were called are in it, in earlier recordings too; all others are compiled when they are needed.
 */

import { renameSync, writeFileSync } from "node:fs";
import vm from "node:vm";
import { threadId } from "node:worker_threads";

const BUNDLE = ".bundle.cjs";

vm.Script = class extends vm.Script {
  constructor(source: string, options: vm.ScriptOptions) {
    super(source, options);
    const { filename = "" } = options;
    if (filename.endsWith(BUNDLE)) process.on("exit", () => write(this, filename));
  }
};

function write(script: vm.Script, filename: string): void {
  const cache = `${filename.slice(0, -BUNDLE.length)}.cache`;
  const temporary = `${cache}.${process.pid}.${threadId}`;
  writeFileSync(temporary, script.createCachedData());
  renameSync(temporary, cache);
}
