/**
 * Entry of the worker thread that runs the data plane of one virtual disk: everything between its front ends and its
 * files. It blocks in the port's turn, so nothing that needs the event loop of Node works here: no timers, no sockets, no
 * output. Messages to it are read after a wake-up.
 */

import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { loadEngineModule } from "../engine/load-node.ts";
import { Disk } from "./disk.ts";
import { messageOf } from "./errors.ts";
import { controlSchema, type Report, workerDataSchema } from "./messages.ts";
import { portModule } from "./port.ts";

const main = parentPort;
if (main === null) {
  throw new Error("worker.ts has to be started as a worker thread");
}

function report(message: Report): void {
  main?.postMessage(message);
}

try {
  const { Port } = portModule();
  const { engine, ...options } = workerDataSchema.parse(workerData);
  const disk = new Disk(options, loadEngineModule(engine), Port, report);
  disk.open();
  disk.serve(() => {
    const received = receiveMessageOnPort(main);
    return received === undefined ? undefined : controlSchema.parse(received.message);
  });
  disk.close();
} catch (error) {
  report({ kind: "failed", message: messageOf(error) });
}
